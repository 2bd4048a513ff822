//! Private buckets: every length, type and grid through the rings, with copies that take their time.

use crate::bits::on_grid;
use crate::world::noise;
use lampyris_comm::{DType, Memory};
use lampyris_hfreduce::canonical::reference;
use lampyris_hfreduce::{CopyId, DeviceCopy, HfReduce, HostTensor, Options, Result};
use std::collections::HashMap;
use std::ops::Range;

/// A device whose copies happen late: some polls after they were asked for, in any order.
struct Slow {
    tensor: HostTensor<f32>,
    random: u64,
    next: u64,
    open: HashMap<CopyId, (u64, bool, Memory, Range<usize>)>,
}

impl Slow {
    fn new(data: Vec<f32>, seed: u64) -> Self {
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { tensor: HostTensor { data }, random, next: 0, open: HashMap::new() }
    }

    fn later(&mut self, in_: bool, host: Memory, elements: Range<usize>) -> CopyId {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let id = CopyId(self.next);
        self.next += 1;
        self.open.insert(id, (self.random % 20, in_, host, elements));
        id
    }
}

impl DeviceCopy for Slow {
    fn copy_to_host(&mut self, elements: Range<usize>, to: Memory) -> Result<CopyId> {
        Ok(self.later(true, to, elements))
    }

    fn copy_to_device(&mut self, from: Memory, elements: Range<usize>) -> Result<CopyId> {
        Ok(self.later(false, from, elements))
    }

    fn ready(&mut self, copy: CopyId) -> Result<bool> {
        let (polls, to_host, host, elements) = self.open.remove(&copy).expect("asked for");
        if polls > 0 {
            self.open.insert(copy, (polls - 1, to_host, host, elements));
            return Ok(false);
        }
        if to_host {
            self.tensor.copy_to_host(elements, host)?;
        } else {
            self.tensor.copy_to_device(host, elements)?;
        }
        Ok(true)
    }
}

/// The tensor comes home through a channel: the bucket owns the device.
struct Reporting(Slow, std::sync::Arc<std::sync::Mutex<Vec<f32>>>);

impl DeviceCopy for Reporting {
    fn copy_to_host(&mut self, elements: Range<usize>, to: Memory) -> Result<CopyId> {
        self.0.copy_to_host(elements, to)
    }

    fn copy_to_device(&mut self, from: Memory, elements: Range<usize>) -> Result<CopyId> {
        self.0.copy_to_device(from, elements)
    }

    fn ready(&mut self, copy: CopyId) -> Result<bool> {
        let ready = self.0.ready(copy)?;
        self.1.lock().expect("one user").clone_from(&self.0.tensor.data);
        Ok(ready)
    }
}

#[test]
fn slow_copies_give_the_same_bits_as_shared_buckets() {
    for grid in [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)] {
        for elements in [0, 1, 63, 64, 65, 5000] {
            let ranks = grid.0 * grid.1;
            let inputs: Vec<Vec<f32>> = (0..ranks).map(|rank| noise(17, rank, elements)).collect();
            let expected = reference(&inputs);
            on_grid(grid, elements as u64, |comm, members| {
                let options = Options { chunk_bytes: 256, ..Options::default() };
                let reducer = HfReduce::new(comm, &members, &options).expect("a grid");
                let me = comm.rank().index();
                let seen = std::sync::Arc::default();
                let slow = Slow::new(inputs[me].clone(), me as u64 + 1);
                let device = Box::new(Reporting(slow, std::sync::Arc::clone(&seen)));
                let bucket = reducer.private_bucket(DType::F32, elements, device).expect("memory");
                // Twice: the second time the sum of equal buckets, so exactly `ranks` times the first.
                reducer.all_reduce(&bucket).expect("started").wait().expect("reduced");
                let first = seen.lock().expect("one user").clone();
                let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
                let wrong = first.iter().zip(&expected).position(|pair| !same(pair));
                assert_eq!(wrong, None, "{grid:?}, {elements} elements, rank {me}");
                assert!(elements == 0 || first.len() == elements, "{grid:?}");
                reducer.all_reduce(&bucket).expect("started").wait().expect("reduced");
                let second = seen.lock().expect("one user").clone();
                let times = ranks as f32;
                assert!(second.iter().zip(&expected).all(|(s, e)| *s == e * times), "{grid:?}");
            });
        }
    }
}

/// What a rank sums itself stays where it lies; the rest passes through the rings.
#[test]
fn private_tensors_in_host_memory_give_the_same_bits_as_shared_buckets() {
    for grid in [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2)] {
        for elements in [0, 1, 64, 65, 5000] {
            let ranks = grid.0 * grid.1;
            let inputs: Vec<Vec<f32>> = (0..ranks).map(|rank| noise(23, rank, elements)).collect();
            let expected = reference(&inputs);
            on_grid(grid, elements as u64, |comm, members| {
                let options = Options { chunk_bytes: 256, ..Options::default() };
                let reducer = HfReduce::new(comm, &members, &options).expect("a grid");
                let device = Box::new(HostTensor { data: inputs[comm.rank().index()].clone() });
                let bucket = reducer.private_bucket(DType::F32, elements, device).expect("memory");
                for round in 0..2i32 {
                    reducer.all_reduce(&bucket).expect("started").wait().expect("reduced");
                    let mut found = vec![0f32; elements];
                    let to = Memory::of(&mut found[..]);
                    let copied = bucket.with_device(|device| device.copy_to_host(0..elements, to));
                    copied.expect("a private bucket").expect("host memory does not refuse");
                    // The second time the sum of equal buckets.
                    let times = (ranks as f32).powi(round);
                    let wrong = |(a, b): (&f32, &f32)| a.to_bits() != (b * times).to_bits();
                    let wrong = found.iter().zip(&expected).position(wrong);
                    assert_eq!(wrong, None, "{grid:?}, {elements} elements, round {round}");
                }
            });
        }
    }
}

#[test]
fn private_buckets_refuse_what_they_cannot_do() {
    on_grid((1, 2), 2, |comm, members| {
        let reducer = HfReduce::new(comm, &members, &Options::default()).expect("a grid");
        let device = Box::new(HostTensor { data: vec![0.0f32; 8] });
        let bucket = reducer.private_bucket(DType::F32, 8, device).expect("memory");
        let error = reducer.gather(&bucket, &[0..4, 4..8]).expect_err("not yet");
        assert!(error.to_string().contains("all-reduced only"), "{error}");
    });
}
