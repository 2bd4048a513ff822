//! Helpers shared by the test suites: where the built programs are, how to run them.
