//! Recipe files and the crate that parses one into a plan::TrainPlan.
