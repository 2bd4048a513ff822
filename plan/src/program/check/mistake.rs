//! What can be wrong with a program, in words for whoever wrote its order.

use super::super::{Act, Transfer, Value};
use crate::segments::Operation;
use std::fmt;

/// A rule that a program breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    /// An act stands in the program twice.
    Twice {
        /// The act.
        act: Act,
    },
    /// A step does not have this act.
    Missing {
        /// The act.
        act: Act,
    },
    /// A transfer is waited for, or carried into the next step, that nobody has started.
    NotStarted {
        /// The transfer.
        transfer: Transfer,
    },
    /// A transfer is started and never waited for.
    NeverWaitedFor {
        /// The transfer.
        transfer: Transfer,
    },
    /// An act takes what a transfer still brings.
    TakenUnderWay {
        /// Who takes.
        act: Act,
        /// What is under way.
        transfer: Transfer,
    },
    /// An act takes a value that nobody has made.
    NotThere {
        /// Who takes.
        act: Act,
        /// What is not there.
        value: Value,
    },
    /// An act takes a value that was freed.
    TakenAfterFree {
        /// Who takes.
        act: Act,
        /// What is gone.
        value: Value,
    },
    /// A value is made again after it was freed.
    MadeAfterFree {
        /// The value.
        value: Value,
    },
    /// A value takes memory at the end of the step.
    NeverFreed {
        /// The value.
        value: Value,
    },
    /// A gradient is taken before a reader of its slot has contributed.
    MissingContribution {
        /// Who takes.
        act: Act,
        /// The gradient.
        value: Value,
        /// Who has not contributed.
        reader: Operation,
    },
    /// A forward pass reads weights that this step has updated.
    ReadsUpdated {
        /// Who reads.
        act: Act,
        /// Index of the bucket.
        bucket: usize,
    },
    /// Weight gradients go to a leaf that is not the micro-batch's.
    WrongLeaf {
        /// The contribution.
        act: Act,
        /// The micro-batch's leaf.
        wanted: usize,
    },
    /// Contributions to a parameter do not come in the order of the plain program.
    OutOfOrder {
        /// The contribution that comes too late.
        act: Act,
        /// The one in front of it.
        after: Act,
    },
    /// A contribution finds its accumulator in use by another leaf, which is not folded yet.
    LeavesMixed {
        /// The contribution.
        act: Act,
        /// Index of the bucket.
        bucket: usize,
        /// The leaf that is not folded.
        open: usize,
    },
    /// A leaf is folded before its last contribution, or again, or not in the order of leaves.
    FoldOutOfPlace {
        /// The fold.
        act: Act,
    },
    /// A contribution comes after the fold of its leaf.
    AfterFold {
        /// The contribution.
        act: Act,
        /// Index of the bucket.
        bucket: usize,
    },
    /// A sum over ranks or sources that comes before the last fold, or that the bucket must not have.
    SumOutOfPlace {
        /// The sum.
        act: Act,
    },
    /// The norm is taken before a bucket's gradient is complete.
    NormTooEarly {
        /// Index of the bucket.
        bucket: usize,
    },
    /// An update comes before the norm.
    UpdateBeforeNorm {
        /// The update.
        act: Act,
    },
    /// A gather that comes before the update, or that the bucket must not have.
    GatherOutOfPlace {
        /// Index of the bucket.
        bucket: usize,
    },
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the step program is wrong: ")?;
        match self {
            Mistake::Twice { act } => write!(f, "{act} stands in it twice"),
            Mistake::Missing { act } => write!(f, "{act} is missing"),
            Mistake::NotStarted { transfer } => {
                write!(f, "{transfer} is waited for but was not started")
            }
            Mistake::NeverWaitedFor { transfer } => write!(f, "nobody waits for {transfer}"),
            Mistake::TakenUnderWay { act, transfer } => {
                write!(f, "{act} does not wait for {transfer}")
            }
            Mistake::NotThere { act, value } => {
                write!(f, "{act} takes {value}, which is not there")
            }
            Mistake::TakenAfterFree { act, value } => {
                write!(f, "{act} takes {value}, which was freed or never made")
            }
            Mistake::MadeAfterFree { value } => {
                write!(f, "{value} is made again after it was freed")
            }
            Mistake::NeverFreed { value } => write!(f, "{value} is never freed"),
            Mistake::MissingContribution { act, value, reader } => {
                write!(f, "{act} takes {value} before {reader} has contributed")
            }
            Mistake::ReadsUpdated { act, bucket } => {
                write!(f, "{act} reads bucket {bucket}, which this step has updated")
            }
            Mistake::WrongLeaf { act, wanted } => write!(f, "{act} belongs to leaf {wanted}"),
            Mistake::OutOfOrder { act, after } => write!(f, "{act} must come before {after}"),
            Mistake::LeavesMixed { act, bucket, open } => {
                write!(
                    f,
                    "{act} needs the accumulator of bucket {bucket} in which leaf {open} stands"
                )
            }
            Mistake::FoldOutOfPlace { act } => write!(f, "{act} is not in its place"),
            Mistake::AfterFold { act, bucket } => {
                write!(f, "{act} comes after bucket {bucket} was folded")
            }
            Mistake::SumOutOfPlace { act } => write!(f, "{act} is not in its place"),
            Mistake::NormTooEarly { bucket } => {
                write!(f, "GradNorm runs before the gradient of bucket {bucket} is complete")
            }
            Mistake::UpdateBeforeNorm { act } => write!(f, "{act} runs before GradNorm"),
            Mistake::GatherOutOfPlace { bucket } => {
                write!(f, "GatherBucket bucket {bucket} is not in its place")
            }
        }
    }
}

impl std::error::Error for Mistake {}
