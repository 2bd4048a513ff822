//! A scheduler, workers, shims and ranks as real processes, and what happens when any of them is killed, stopped, cut off or
//! out of disk. Ranks are `lampyris-steady-rank`, save in `ranks.rs`, where weights are compared.
#![cfg(test)]

mod access;
mod blame;
mod desk;
mod faults;
mod history;
mod kills;
mod limits;
mod ranks;
mod sharing;
