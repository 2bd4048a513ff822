//! Training runs of the real programs: golden losses, kill and resume bit for bit, parity, damage, NaN, full disk.

#![allow(missing_docs, reason = "a test suite")]

mod damage;
mod golden;
mod kill;
mod ledger;
mod parity;
mod resume;
mod text;
