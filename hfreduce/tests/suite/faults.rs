//! A local rank that aborts, never comes, or dies in the middle: everybody else gets an error that says so.

use crate::bits::on_grid;
use crate::tensors::{Breaking, Slow};
use lampyris_comm::{DType, Error as CommError, Rank};
use lampyris_hfreduce::{Error, HfReduce, Options, Reduction};
use std::sync::Barrier;
use std::time::{Duration, Instant};

#[test]
fn a_rank_that_never_comes_is_named_at_the_deadline() {
    for (grid, private) in [((1, 2), false), ((2, 1), false), ((1, 2), true), ((2, 1), true)] {
        on_grid(grid, 4, |comm, ranks| {
            let timeout = Some(Duration::from_millis(300));
            let options = Options { timeout, ..Options::default() };
            let reducer = HfReduce::new(comm, &ranks, &options).expect("a grid");
            let bucket = if private {
                let device = Box::new(Slow::new(DType::F32, 5000, 1));
                reducer.private_bucket(DType::F32, 5000, device).expect("memory")
            } else {
                reducer.bucket(DType::F32, 5000).expect("memory")
            };
            if comm.rank() == Rank(1) {
                while comm.check().is_ok() {
                    std::thread::yield_now();
                }
                return;
            }
            let started = Instant::now();
            let reduction = reducer.all_reduce(&bucket).expect("started");
            let error = reduction.wait().expect_err("rank 1 is elsewhere");
            let Error::Comm(CommError::Timeout { waiting, .. }) = &error else { panic!("{error}") };
            assert_eq!(waiting[0].0, Rank(1), "{error}");
            assert!(waiting[0].1.contains("has not entered it"), "{error}");
            assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
            assert!(reducer.all_reduce(&bucket).is_err(), "the communicator is poisoned");
        });
    }
}

#[test]
fn an_abort_ends_reductions_in_flight() {
    for grid in [(1, 2), (2, 2)] {
        let ready = std::sync::Barrier::new(grid.0 * grid.1);
        on_grid(grid, 5, |comm, ranks| {
            let reducer = HfReduce::new(comm, &ranks, &Options::default()).expect("a grid");
            let bucket = reducer.bucket(DType::F32, 100_000).expect("memory");
            ready.wait();
            let error = loop {
                if comm.rank() == Rank(1) {
                    comm.abort("enough");
                }
                let ended = reducer.all_reduce(&bucket).and_then(Reduction::wait);
                if let Err(error) = ended {
                    break error;
                }
            };
            let by_rank_1 = matches!(&error, Error::Comm(CommError::Aborted { rank: Rank(1), .. }));
            assert!(by_rank_1, "{error}");
        });
    }
}

#[test]
fn a_device_that_breaks_ends_the_reduction_of_all_ranks() {
    for grid in [(1, 2), (2, 1), (2, 2)] {
        // A rank that breaks before all have their bucket would end the making of those.
        let all_have_one = Barrier::new(grid.0 * grid.1);
        on_grid(grid, 6, |comm, ranks| {
            let options = Options { chunk_bytes: 256, ..Options::default() };
            let reducer = HfReduce::new(comm, &ranks, &options).expect("a grid");
            let good = if comm.rank() == Rank(1) { 3 } else { usize::MAX };
            let tensor = Slow::new(DType::F32, 5000, 1);
            let device = Box::new(Breaking { tensor, good });
            let bucket = reducer.private_bucket(DType::F32, 5000, device).expect("memory");
            all_have_one.wait();
            let ended = reducer.all_reduce(&bucket).and_then(Reduction::wait);
            let error = ended.expect_err("one device is broken");
            match &error {
                Error::Device(_) => assert_eq!(comm.rank(), Rank(1)),
                Error::Comm(CommError::Aborted { rank: Rank(1), reason }) => {
                    assert!(reason.contains("out of order"), "{reason}");
                }
                other => panic!("{other}"),
            }
            assert!(reducer.all_reduce(&bucket).is_err(), "the communicator is poisoned");
        });
    }
}
