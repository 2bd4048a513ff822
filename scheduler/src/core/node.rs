//! Nodes: what they have, and whether they can be counted on.

use super::Time;
use lampyris_proto::{Attempt, JobId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Position of a node in the scheduler's table, in order of first registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u32);

/// Name under which a worker registers; unique, usually the host name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(pub String);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// One worker: what tells two apart that have the same name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Instance {
    /// Made with its state directory, and the same over its restarts.
    pub id: String,
    /// Where it works, for people: host and state directory.
    pub place: String,
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.place.is_empty() { "at an unknown place" } else { &self.place };
        write!(f, "{place} (instance {})", if self.id.is_empty() { "unknown" } else { &self.id })
    }
}

/// Where a node stands in the network.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Place {
    /// Zone: nodes with full bandwidth between them. At most one job runs across zones.
    pub zone: String,
    /// Switch (leaf) inside the zone.
    pub switch: String,
}

/// What a node offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Group to which jobs are submitted.
    pub group: String,
    /// Devices (GPUs, or CPU slots); at least 1.
    pub devices: u32,
    /// Whether jobs may take single devices of it.
    pub shared: bool,
    /// Where it stands.
    pub place: Place,
}

/// Whether a node can be counted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Heard of in time.
    Online,
    /// Disconnected, or not heard of for half a lease: gets nothing new, and keeps what it has.
    Silent,
    /// Silent for lease, grace and margin: whatever ran there has stopped itself.
    Lost,
}

impl NodeState {
    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            NodeState::Online => "online",
            NodeState::Silent => "silent",
            NodeState::Lost => "lost",
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its place in the table.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Changes when the machine boots: nothing survives that.
    pub boot_id: String,
    /// Its worker, as last registered.
    #[serde(default)]
    pub instance: Instance,
    /// What it offers, as last registered.
    pub capacity: Capacity,
    /// Whether it can be counted on.
    pub state: NodeState,
    /// Gets nothing new: a person said so, or its host.
    pub draining: bool,
    /// The drain was made by the program that hosts the worker, which ends it when it comes back.
    #[serde(default)]
    pub drained_by_host: bool,
    /// Found unfit by its worker: gets nothing before this time.
    pub unfit_until: Time,
    /// What was wanting then.
    #[serde(default)]
    pub unfit_for: String,
    /// Its worker has left on purpose.
    #[serde(default)]
    pub left: bool,
    /// The connection on which it is registered. Not kept over a restart.
    #[serde(skip)]
    pub session: Option<u64>,
    /// When it was last heard of. Not kept over a restart.
    #[serde(skip)]
    pub heard: Time,
    /// Attempts that hold devices of it, and how many devices. Follows from the jobs.
    #[serde(skip)]
    pub held: BTreeMap<JobId, u32>,
    /// Attempts of the past that its worker still reports; it gets nothing new until they are gone.
    #[serde(skip)]
    pub foreign: BTreeSet<(JobId, Attempt)>,
    /// The waiting job for which it is kept free, if any. Not kept over a restart.
    #[serde(skip)]
    pub claimed: Option<JobId>,
    /// Free devices under which it stands in the index of free nodes, if it does.
    #[serde(skip)]
    pub(super) indexed: Option<u32>,
    /// Whether it counts as in service.
    #[serde(skip)]
    pub(super) serving: bool,
    /// Whether a timer looks after its silence.
    #[serde(skip)]
    pub(super) watched: bool,
}

impl Node {
    /// Whether attempts may be placed on it.
    pub fn is_in_service(&self, now: Time) -> bool {
        self.state == NodeState::Online
            && !self.draining
            && self.unfit_until <= now
            && self.foreign.is_empty()
    }

    /// Devices that no attempt holds.
    pub fn free_devices(&self) -> u32 {
        self.capacity.devices.saturating_sub(self.held.values().sum())
    }
}
