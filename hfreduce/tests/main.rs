//! Integration tests of the reduction: grids of nodes and ranks, bit for bit against twins.

#[path = "../../comm/tests/suite/world.rs"]
mod world;

#[path = "suite/bits.rs"]
mod bits;
#[path = "suite/faults.rs"]
mod faults;
#[path = "suite/staging.rs"]
mod staging;
#[path = "suite/tensors.rs"]
mod tensors;
