//! All that can be computed before anything runs, pure: no clock, no files, no network.
//!
//! A [`TrainPlan`] is a recipe with nothing left to default. From it follow the [`Inventory`] of parameters, the flat
//! [`buckets`] they live in, and the figures that `lampyris plan` prints.

pub mod buckets;
pub mod digest;
pub mod estimate;
#[cfg(test)]
mod fixture;
pub mod flops;
pub mod ids;
pub mod inventory;
pub mod lr;
pub mod memory;
pub mod mesh;
pub mod model_spec;
pub mod norm_places;
pub mod peak;
pub mod program;
pub mod report;
pub mod segments;
pub mod shards;
pub mod share;
pub mod timeline;
pub mod traffic;
pub mod train_plan;
pub mod validate;
pub mod visible;

pub use ids::{Attempt, Rank, Step};
pub use inventory::{Inventory, Parameter};
pub use mesh::Mesh;
pub use model_spec::ModelSpec;
pub use share::{Share, Shares};
pub use train_plan::TrainPlan;
