//! A scheduler, workers, shims and ranks as real processes, and what happens when any of them is killed, stopped, cut off or
//! out of disk. Ranks are `lampyris-steady-rank`, save where weights are compared.
#![cfg(test)]

mod desk;
mod faults;
mod history;
mod kills;
mod limits;
mod sharing;
