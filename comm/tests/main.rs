//! Integration tests of the communication layer: real transports, threads or processes as ranks.

#[path = "suite/world.rs"]
mod world;

#[path = "suite/collectives.rs"]
mod collectives;
