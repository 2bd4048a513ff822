//! The decisions of the scheduler, pure: `step(now, event) -> actions`, on whole clusters, in memory.
//!
//! The caller owns clock, network and database: it hands in what happened and when, makes the change durable, and
//! then carries the actions out. The same events give the same state and the same actions, in the same order.

mod action;
mod event;
mod failure;
mod job;
mod node;
mod policy;
mod quota;
mod reason;
mod time;

pub use action::{Action, Answer, Record, Subject};
pub use event::{Command, Event, Progress, Registration, ReportedAttempt, ReportedState};
pub use failure::{Failure, FailureClass, Outcome};
pub use job::{Job, JobSpec, JobState, Member, MemberState, Priority, StopReason, Wanted};
pub use node::{Capacity, Node, NodeId, NodeName, NodeState, Place};
pub use policy::Policy;
pub use quota::{Amount, Quota, QuotaKey};
pub use reason::{Reason, Refusal};
pub use time::Time;
