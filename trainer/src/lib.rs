//! The rank process: builds from the plan, executes step programs, updates, reports, suspends.
