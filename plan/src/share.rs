//! A rank's share of a job: which parameters it holds and where they lie, what of them it updates, where its part of the
//! gradient norm stands, and the program of its step. Everything that a rank builds, and everything that is said of a rank
//! before it runs, is read from here.
//!
//! [`Shares`] holds what ranks have in common and is made once; the [`Share`] of one of thousands of ranks then costs
//! nothing. What is asked for first is computed first: a report that shows no program makes none.

use crate::buckets::{Bucket, Buckets};
use crate::flops::newton_schulz;
use crate::inventory::{Group, Inventory, Optimizer, Parameter};
use crate::mesh::Mesh;
use crate::model_spec::ModelSpec;
use crate::norm_places::NormPlaces;
use crate::program::{BucketUse, Program, StepShape};
use crate::segments::{Graph, Segment};
use crate::shards::shards;
use crate::train_plan::{Compute, Reduction, Sharding, TrainPlan};
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

/// What all ranks of a job have in common.
#[derive(Debug, Clone)]
pub struct Shares {
    common: Arc<Common>,
}

/// One rank's part of a job.
#[derive(Debug, Clone)]
pub struct Share {
    rank: usize,
    common: Arc<Common>,
    buckets: Arc<Buckets>,
}

/// How a job is divided.
#[derive(Debug)]
struct Common {
    mesh: Mesh,
    sharding: Sharding,
    compute: Compute,
    /// Whether expert gradients are kept apart by the rank whose tokens made them (canonical reduction).
    by_source: bool,
    /// Gradient leaves of a rank.
    leaves: usize,
    /// Micro-batches of a rank in a full-size step.
    micro_batches: usize,
    overlap: bool,
    bucket_bytes: usize,
    graph: Arc<Graph>,
    inventory: Arc<Inventory>,
    /// By expert index: the buckets of the ranks that own those experts.
    buckets: Vec<OnceLock<Arc<Buckets>>>,
    /// By bucket. All ranks hold the same shapes: of the experts equally many each, layer by layer.
    shards: OnceLock<Vec<Vec<Range<usize>>>>,
    uses: OnceLock<Arc<[BucketUse]>>,
    norm: OnceLock<NormPlaces>,
    program: OnceLock<Program>,
}

/// What a rank updates of the Muon matrices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MuonWork {
    /// Elements.
    pub elements: u64,
    /// Newton-Schulz operations of one step.
    pub flops: u64,
}

impl Shares {
    /// The shares of a plan that `validate` accepts.
    pub fn of(plan: &TrainPlan) -> Shares {
        let mesh = Mesh::new(&plan.parallel);
        let common = Common {
            sharding: plan.parallel.sharding(),
            by_source: plan.batch.reduction == Reduction::Canonical,
            leaves: plan.leaves_per_rank(),
            micro_batches: plan.micro_batches() / mesh.data,
            overlap: plan.parallel.overlap,
            bucket_bytes: plan.parallel.bucket_bytes,
            ..Common::new(&plan.model, Inventory::of(plan), mesh, plan.compute)
        };
        Shares { common: Arc::new(common) }
    }

    /// That of one rank.
    ///
    /// # Panics
    /// If the job has no such rank.
    pub fn rank(&self, rank: usize) -> Share {
        let common = &self.common;
        assert!(rank < common.mesh.data, "rank {rank} of {}", common.mesh.data);
        let buckets = Arc::clone(common.buckets(common.mesh.expert_index(rank)));
        Share { rank, common: Arc::clone(common), buckets }
    }

    /// Sizes of the axes.
    pub fn mesh(&self) -> Mesh {
        self.common.mesh
    }

    /// Segments and slots of the network.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.common.graph
    }

    /// All parameters and buffers of the network.
    pub fn inventory(&self) -> &Inventory {
        &self.common.inventory
    }

    /// The largest work of Muon's that a rank has, by operations; zero with AdamW.
    pub fn busiest_muon(&self) -> MuonWork {
        let muon = |p: &Parameter| p.optimizer == Optimizer::Muon;
        if !self.inventory().parameters.iter().any(muon) {
            return MuonWork::default();
        }
        let work = (0..self.common.mesh.data).map(|rank| self.rank(rank).muon_work());
        work.max_by_key(|work| work.flops).unwrap_or_default()
    }

    /// The most elements of Muon's that a rank updates; zero with AdamW.
    pub fn most_muon_elements(&self) -> u64 {
        let muon = |p: &Parameter| p.optimizer == Optimizer::Muon;
        if !self.inventory().parameters.iter().any(muon) {
            return 0;
        }
        let work = (0..self.common.mesh.data).map(|rank| self.rank(rank).muon_work().elements);
        work.max().unwrap_or(0)
    }
}

impl Share {
    /// The share of one rank of a plan that `validate` accepts.
    ///
    /// # Panics
    /// If the plan has no such rank.
    pub fn of(plan: &TrainPlan, rank: usize) -> Share {
        Shares::of(plan).rank(rank)
    }

    /// A network on one rank, in one bucket of each kind, with one gradient leaf of one micro-batch: to look at it, not to
    /// train it.
    pub fn alone(spec: &ModelSpec, compute: Compute) -> Share {
        let common = Common::new(spec, Inventory::new(spec), Mesh::ONE, compute);
        Shares { common: Arc::new(common) }.rank(0)
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Sizes of the axes.
    pub fn mesh(&self) -> Mesh {
        self.common.mesh
    }

    /// What ranks that hold the same parameters share out among them.
    pub fn sharding(&self) -> Sharding {
        self.common.sharding
    }

    /// Type of the weights that matrix products read.
    pub fn compute(&self) -> Compute {
        self.common.compute
    }

    /// Segments and slots of the network.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.common.graph
    }

    /// All parameters and buffers of the network, those of other ranks among them.
    pub fn inventory(&self) -> &Arc<Inventory> {
        &self.common.inventory
    }

    /// Where the parameters that this rank holds lie.
    pub fn buckets(&self) -> &Arc<Buckets> {
        &self.buckets
    }

    /// How the program uses each bucket.
    pub fn uses(&self) -> &Arc<[BucketUse]> {
        self.common.uses()
    }

    /// How many ranks hold this group's parameters, and which of them this one is.
    pub fn replica(&self, group: Group) -> (usize, usize) {
        let mesh = self.common.mesh;
        match group {
            Group::Dense => (mesh.data, self.rank),
            Group::Expert => (mesh.data / mesh.expert, self.rank / mesh.expert),
        }
    }

    /// The shard of each replica of a bucket: what it counts in the norm, writes into a checkpoint and, where the optimizer
    /// is sharded, updates.
    pub fn shards(&self, bucket: usize) -> &[Range<usize>] {
        &self.common.shards()[bucket]
    }

    /// Elements of a bucket that this rank updates.
    pub fn owned(&self, bucket: usize) -> Range<usize> {
        let Bucket { group, elements, .. } = self.buckets.buckets[bucket];
        match self.common.sharding {
            Sharding::Replicated => 0..elements,
            Sharding::Optimizer => self.shards(bucket)[self.replica(group).1].clone(),
        }
    }

    /// Runs of owned elements that share weight decay: (elements of the bucket, whether they decay). A run takes the
    /// alignment gap behind a parameter along: its elements are zero and stay zero.
    pub fn decay_runs(&self, bucket: usize) -> Vec<(Range<usize>, bool)> {
        let owned = self.owned(bucket);
        let Bucket { placements, elements, .. } = &self.buckets.buckets[bucket];
        let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
        for (i, placement) in placements.iter().enumerate() {
            let end = placements.get(i + 1).map_or(*elements, |next| next.offset);
            let decays = self.common.inventory.parameters[placement.parameter].decay;
            let part = intersection(&(placement.offset..end), &owned);
            match runs.last_mut() {
                _ if part.is_empty() => {}
                Some(run) if run.1 == decays => run.0.end = part.end,
                _ => runs.push((part, decays)),
            }
        }
        runs
    }

    /// What this rank updates of the Muon matrices.
    pub fn muon_work(&self) -> MuonWork {
        let mut work = MuonWork::default();
        for bucket in self.buckets.buckets.iter().filter(|b| b.optimizer == Optimizer::Muon) {
            let owned = self.owned(bucket.id);
            for placement in bucket.placements.iter().filter(|p| owned.contains(&p.offset)) {
                work.elements += placement.elements as u64;
                work.flops += newton_schulz(&self.common.inventory.parameters[placement.parameter]);
            }
        }
        work
    }

    /// Gradient accumulators of a bucket and source: one per level of the tree over this rank's leaves.
    pub fn accumulators(&self) -> usize {
        self.common.leaves.ilog2() as usize + 1
    }

    /// Where the sums of the gradient norm stand; the same on all ranks.
    pub fn norm(&self) -> &NormPlaces {
        self.common.norm()
    }

    /// The program of a full-size step.
    pub fn program(&self) -> &Program {
        let micro_batches = self.common.micro_batches;
        self.common.program.get_or_init(|| self.program_of(micro_batches))
    }

    /// The program of a step of this many micro-batches of this rank, a multiple of its leaves.
    pub fn program_of(&self, micro_batches: usize) -> Program {
        let shape = self.step_shape(micro_batches);
        match self.common.overlap {
            true => Program::overlapped(&shape),
            false => Program::sequential(&shape),
        }
    }

    /// What a step of this many micro-batches consists of.
    pub fn step_shape(&self, micro_batches: usize) -> StepShape {
        StepShape {
            graph: Arc::clone(&self.common.graph),
            buckets: Arc::clone(self.common.uses()),
            micro_batches,
            leaves: self.common.leaves,
        }
    }
}

impl Common {
    /// Nothing sharded or overlapped, one micro-batch, buckets of any size.
    fn new(spec: &ModelSpec, inventory: Inventory, mesh: Mesh, compute: Compute) -> Common {
        Common {
            mesh,
            sharding: Sharding::Replicated,
            compute,
            by_source: false,
            leaves: 1,
            micro_batches: 1,
            overlap: false,
            bucket_bytes: usize::MAX,
            graph: Arc::new(Graph::new(spec)),
            inventory: Arc::new(inventory),
            buckets: (0..mesh.expert).map(|_| OnceLock::new()).collect(),
            shards: OnceLock::new(),
            uses: OnceLock::new(),
            norm: OnceLock::new(),
            program: OnceLock::new(),
        }
    }

    fn buckets(&self, index: usize) -> &Arc<Buckets> {
        let make = || {
            let experts = self.inventory.experts();
            let held = |id: usize| self.mesh.holds(index, experts, &self.inventory.parameters[id]);
            Arc::new(Buckets::new(&self.inventory, self.bucket_bytes, held))
        };
        self.buckets[index].get_or_init(make)
    }

    fn replicas(&self, group: Group) -> usize {
        self.mesh.replicas(group, 0).len()
    }

    fn shards(&self) -> &[Vec<Range<usize>>] {
        let make = || shards(&self.inventory, self.buckets(0), |group| self.replicas(group));
        self.shards.get_or_init(make)
    }

    fn norm(&self) -> &NormPlaces {
        let make = || {
            let buckets = (0..self.mesh.expert).map(|index| &**self.buckets(index));
            NormPlaces::new(self.inventory.parameters.len(), buckets, self.shards())
        };
        self.norm.get_or_init(make)
    }

    fn uses(&self) -> &Arc<[BucketUse]> {
        let of_bucket = |bucket: &Bucket| {
            let parameters = bucket.placements.iter().map(|placement| placement.parameter);
            let readers: BTreeSet<&Vec<Segment>> =
                parameters.map(|id| &self.inventory.parameters[id].segments).collect();
            let several = self.replicas(bucket.group) > 1;
            BucketUse {
                readers: readers.into_iter().cloned().collect(),
                sources: if self.by_source { self.mesh.sources(bucket.group) } else { 1 },
                reduced: several,
                gathered: several && self.sharding == Sharding::Optimizer,
            }
        };
        self.uses.get_or_init(|| self.buckets(0).buckets.iter().map(of_bucket).collect())
    }
}

/// The common part of two ranges, empty if there is none.
pub fn intersection(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

#[cfg(test)]
mod tests;
