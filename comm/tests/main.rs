//! Integration tests of the communication layer: real transports, threads or processes as ranks.

#[path = "suite/world.rs"]
mod world;

#[path = "suite/collectives.rs"]
mod collectives;
#[path = "suite/dispatch.rs"]
mod dispatch;
#[path = "suite/faults.rs"]
mod faults;
#[path = "suite/fuzz.rs"]
mod fuzz;
#[path = "suite/processes.rs"]
mod processes;
#[path = "suite/strangers.rs"]
mod strangers;
