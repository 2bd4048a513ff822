//! Tests of the core: small stories told step by step, and a seeded simulation of whole clusters.

mod sim;
mod stories;
