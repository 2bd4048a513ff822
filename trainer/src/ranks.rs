//! The ranks of a job, seen by one of them: the communicator, the groups of the mesh, and the reducers of gradient
//! buckets. A job of one rank has none of these, and every call here is then the identity.

use crate::Result;
use crate::lanes::ExpertRows;
use crate::planted::{Bug, planted};
use lampyris_checkpoint::Neighbour;
use lampyris_comm::{Attempt, Communicator, Generation, Group, Membership, Node, Options, Secret};
use lampyris_hfreduce::{self as hfreduce, HfReduce};
use lampyris_plan::Mesh;
use lampyris_plan::inventory;
use lampyris_plan::train_plan::{Reduction, TrainPlan};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Time for all ranks to start and meet: a cold start reads libtorch from disk.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(120);

/// How long ranks wait for the slowest disk. A rank that died is seen at once.
const SAVE_TIMEOUT: Duration = Duration::from_secs(3600);

/// How long an idle communication thread polls before it sleeps, where it has a core of its own.
const SPIN: Duration = Duration::from_micros(20);

/// Where this rank stands, and how it finds the others.
#[derive(Debug)]
pub struct Place {
    /// This rank.
    pub rank: usize,
    /// Nodes of the job; ranks fill them in order, equally many on each.
    pub nodes: usize,
    /// This rank's node.
    pub node: usize,
    /// Attempt of the run.
    pub attempt: u32,
    /// Where ranks meet.
    pub rendezvous: SocketAddr,
    /// The attempt's secret.
    pub secret: Secret,
}

/// The ranks of a job.
#[derive(Debug)]
pub struct Ranks {
    rank: usize,
    nodes: usize,
    mesh: Mesh,
    joined: Option<Joined>,
}

/// Reducers end before the communicator that they use.
#[derive(Debug)]
struct Joined {
    dense: HfReduce,
    expert: Option<HfReduce>,
    /// Until a rank takes it.
    rows: Option<ExpertRows>,
    comm: Communicator,
}

impl Ranks {
    /// A job of one rank.
    pub fn alone() -> Ranks {
        Ranks { rank: 0, nodes: 1, mesh: Mesh::ONE, joined: None }
    }

    /// Meets the other ranks of `plan`. Collective.
    ///
    /// # Errors
    /// Ranks that do not come are named; a layout that the reduction cannot serve is refused.
    pub fn connect(plan: &TrainPlan, place: Place) -> Result<Ranks> {
        let (rank, mesh) = (place.rank, Mesh::new(&plan.parallel));
        let per_node = mesh.data / place.nodes.max(1);
        let number = |n: usize| u32::try_from(n).expect("fewer than 2^32 ranks");
        let me = Membership {
            rank: lampyris_comm::Rank(number(rank)),
            ranks: mesh.data,
            node: Node(number(place.node)),
            attempt: Attempt(place.attempt),
            generation: Generation(0),
            rendezvous: place.rendezvous,
            address: None,
            secret: place.secret,
        };
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let options = Options {
            connect_timeout: CONNECT_TIMEOUT,
            operation_timeout: Duration::from_secs(plan.parallel.operation_timeout_s),
            peer_timeout: Duration::from_millis(plan.parallel.peer_timeout_ms),
            spin: if per_node < cores { SPIN } else { Duration::ZERO },
            ..Options::default()
        };
        let comm = Communicator::connect(&me, options)?;
        let list = |ranks: Vec<usize>| -> Vec<lampyris_comm::Rank> {
            ranks.into_iter().map(|rank| lampyris_comm::Rank(number(rank))).collect()
        };
        let canonical = plan.batch.reduction == Reduction::Canonical;
        let options = hfreduce::Options { canonical, ..hfreduce::Options::default() };
        let reducer = |group| {
            let members = list(mesh.replicas(group, rank));
            (members.len() > 1).then(|| HfReduce::new(&comm, &members, &options)).transpose()
        };
        let dense = reducer(inventory::Group::Dense)?.expect("several ranks hold dense weights");
        let expert = reducer(inventory::Group::Expert)?;
        let rows = match &plan.model.moe {
            Some(moe) if mesh.expert > 1 => {
                let axis = comm.group(&list(mesh.expert_group(rank)))?;
                Some(ExpertRows::new(&axis, moe.experts, plan.compute, canonical)?)
            }
            _ => None,
        };
        Ok(Ranks {
            rank,
            nodes: place.nodes.max(1),
            mesh,
            joined: Some(Joined { dense, expert, rows, comm }),
        })
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Whether this is the rank that reports, writes metrics and commits.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Sizes of the axes.
    pub fn mesh(&self) -> Mesh {
        self.mesh
    }

    /// Sums buckets of this group; none where this rank alone holds them.
    pub fn reducer(&self, group: inventory::Group) -> Option<&HfReduce> {
        let joined = self.joined.as_ref()?;
        match group {
            inventory::Group::Dense => Some(&joined.dense),
            inventory::Group::Expert => joined.expert.as_ref(),
        }
    }

    /// The lane of rows among the ranks that share the experts of one copy, where there are several; once.
    pub(crate) fn take_rows(&mut self) -> Option<ExpertRows> {
        self.joined.as_mut()?.rows.take()
    }

    /// What saving or loading checkpoints needs to agree on them. Collective: all ranks make it in the same order.
    ///
    /// # Errors
    /// The communicator has failed.
    pub fn for_checkpoints(&self) -> Result<lampyris_checkpoint::Ranks> {
        Ok(self.for_saves()?.0)
    }

    /// The same, and what passing snapshots on to the next node needs; none where there is one node. Both use one group,
    /// so one thread must use them.
    ///
    /// # Errors
    /// As [`Ranks::for_checkpoints`].
    pub fn for_saves(&self) -> Result<(lampyris_checkpoint::Ranks, Option<Neighbour>)> {
        let Some(joined) = &self.joined else {
            return Ok((lampyris_checkpoint::Ranks::alone(), None));
        };
        let group = joined.comm.group(joined.comm.world().members())?.with_timeout(SAVE_TIMEOUT);
        let neighbour = (self.nodes > 1).then(|| self.neighbour(group.clone()));
        let all_gather = move |word: &[u8]| {
            let mut words = vec![0u8; word.len() * group.len()];
            group.all_gather(word, &mut words)?;
            Ok(words)
        };
        let rank = lampyris_plan::Rank(self.rank as u64);
        let ranks = lampyris_checkpoint::Ranks::new(rank, self.mesh.data, Box::new(all_gather));
        Ok((ranks, neighbour))
    }

    /// This rank's node.
    pub fn node(&self) -> usize {
        self.rank / self.per_node()
    }

    fn per_node(&self) -> usize {
        self.mesh.data / self.nodes
    }

    /// The counterpart of this rank on the previous node; sends go to that on the next one.
    fn neighbour(&self, group: Group) -> Neighbour {
        let (world, per_node) = (self.mesh.data, self.per_node());
        let next = (self.rank + per_node) % world;
        let previous = (self.rank + world - per_node) % world;
        let shift = move |send: &[u8], receive: &mut [u8]| {
            let sending = (!send.is_empty()).then(|| group.start_send(send.to_vec(), next));
            let sending = sending.transpose()?;
            if !receive.is_empty() {
                group.receive(receive, previous)?;
            }
            if let Some(sending) = sending {
                sending.wait()?;
            }
            Ok(())
        };
        let rank = lampyris_plan::Rank(previous as u64);
        Neighbour { rank, shift: Box::new(shift) }
    }

    /// Sums integers over all ranks.
    ///
    /// # Errors
    /// A peer is gone, late, or runs something else.
    pub fn sum_integers(&self, values: &mut [i64]) -> Result<()> {
        if planted(Bug::LocalLossScale) {
            return Ok(());
        }
        match &self.joined {
            Some(joined) => Ok(joined.comm.world().all_reduce(values)?),
            None => Ok(()),
        }
    }

    /// Brings a table together of which every rank has filled its own places and left zero in the others.
    ///
    /// # Errors
    /// As [`Ranks::sum_integers`].
    pub fn fill_table(&self, values: &mut [f64]) -> Result<()> {
        match &self.joined {
            Some(joined) => Ok(joined.comm.world().all_reduce(values)?),
            None => Ok(()),
        }
    }

    /// Bytes sent to ranks of other nodes since the ranks met.
    pub fn sent_between_nodes(&self) -> u64 {
        let sent = |joined: &Joined| joined.comm.counters().network.load(Ordering::Relaxed);
        self.joined.as_ref().map_or(0, sent)
    }

    /// Returns when all ranks have called it.
    ///
    /// # Errors
    /// As [`Ranks::sum_integers`].
    pub fn barrier(&self) -> Result<()> {
        match &self.joined {
            Some(joined) => Ok(joined.comm.world().barrier()?),
            None => Ok(()),
        }
    }

    /// Tells the other ranks that this one cannot go on.
    pub fn abort(&self, reason: &str) {
        if let Some(joined) = &self.joined {
            joined.comm.abort(reason);
        }
    }
}
