//! Runs of several ranks of the real programs: the same bits for any layout, resume on another one, ranks that die.

#![allow(missing_docs, reason = "a test suite")]

mod death;
mod kill;
mod layouts;
mod replica;
