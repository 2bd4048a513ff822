//! Private buckets against shared ones: every collective, type, order, grid, length and cut, bit for bit.

use crate::bits::{on_grid, reference};
use crate::tensors::{Slow, at_home, read, write};
use crate::world::noise;
use lampyris_comm::schedule::even_slices;
use lampyris_comm::{Communicator, DType, Rank};
use lampyris_hfreduce::{Bucket, HfReduce, Options, Reduction};
use std::ops::Range;

#[derive(Debug, Clone)]
enum Call {
    AllReduce,
    ReduceScatter(Vec<Range<usize>>),
    Gather(Vec<Range<usize>>),
}

impl Call {
    fn start(&self, reducer: &HfReduce, bucket: &Bucket) -> Reduction {
        let started = match self {
            Call::AllReduce => reducer.all_reduce(bucket),
            Call::ReduceScatter(shards) => reducer.reduce_scatter(bucket, shards),
            Call::Gather(shards) => reducer.gather(bucket, shards),
        };
        started.expect("started")
    }

    /// Elements whose value the call promises on rank `me`; a gather leaves those that nobody owns alone.
    fn promised(&self, me: usize, elements: usize) -> Range<usize> {
        match self {
            Call::AllReduce | Call::Gather(_) => 0..elements,
            Call::ReduceScatter(shards) => shards[me].clone(),
        }
    }
}

/// Even shards; backwards, with gaps and an empty one; all in one rank.
fn cuts(elements: usize, ranks: usize) -> [Vec<Range<usize>>; 3] {
    let even = even_slices(elements, ranks);
    let at = |part: usize| elements * part / (ranks + 1);
    let mut uneven: Vec<_> = (0..ranks).map(|r| at(ranks - r - 1)..at(ranks - r)).collect();
    uneven[ranks / 2] = 0..0;
    let mut one = vec![elements..elements; ranks];
    one[ranks - 1] = 0..elements;
    [even, uneven, one]
}

/// Bytes of elements of any type: ordinary numbers that round, and between them NaNs with payload, infinities, denormals.
fn elements_of(dtype: DType, rank: usize, elements: usize) -> Vec<u8> {
    let special = [0x7fc0_1234u32, 0xff80_0000, 0x0000_0001, 0x8000_0000, 0x7f80_0000];
    let values = noise(31, rank, elements);
    let words = values.iter().enumerate().map(|(at, value)| match at % 37 {
        36 => special[(at / 37 + rank) % special.len()],
        _ => value.to_bits(),
    });
    words.flat_map(|word| word.to_le_bytes()[4 - dtype.bytes()..].to_vec()).collect()
}

fn words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(4).map(bytemuck::pod_read_unaligned).collect()
}

/// Where a tensor lies.
#[derive(Debug, Clone, Copy)]
enum Tensor {
    Slow,
    AtHome,
}

/// Runs all calls on a shared and on a private bucket of one type and length, twice each.
fn compare(comm: &Communicator, reducer: &HfReduce, dtype: DType, elements: usize, tensor: Tensor) {
    let (me, ranks) = (comm.rank().index(), comm.ranks());
    let device = match tensor {
        Tensor::Slow => Box::new(Slow::new(dtype, elements, (me + elements) as u64)),
        Tensor::AtHome => at_home(dtype, elements),
    };
    let shared = reducer.bucket(dtype, elements).expect("memory");
    let private = reducer.private_bucket(dtype, elements, device).expect("memory");
    let mut calls = vec![Call::AllReduce];
    for shards in cuts(elements, ranks) {
        calls.push(Call::ReduceScatter(shards.clone()));
        calls.push(Call::Gather(shards));
    }
    for call in calls {
        for bucket in [&shared, &private] {
            write(bucket, &elements_of(dtype, me, elements));
        }
        // Both in flight at once.
        let running = [&shared, &private].map(|bucket| call.start(reducer, bucket));
        running.into_iter().for_each(|reduction| reduction.wait().expect("reduced"));
        let (expected, found) = (read(&shared), read(&private));
        let range = call.promised(me, elements);
        let bytes = range.start * dtype.bytes()..range.end * dtype.bytes();
        let same = expected[bytes.clone()] == found[bytes];
        assert!(same, "{call:?} of {elements} {dtype:?}, {tensor:?}, rank {me} of {ranks}");
    }
}

fn compare_all(grid: (usize, usize), canonical: bool) {
    on_grid(grid, 77, |comm, members| {
        let options = Options { canonical, chunk_bytes: 256, ..Options::default() };
        let reducer = HfReduce::new(comm, &members, &options).expect("a grid");
        for tensor in [Tensor::Slow, Tensor::AtHome] {
            for dtype in [DType::F32, DType::Bf16, DType::F16, DType::Fp8E4m3] {
                for elements in [0, 1, 65, 1003] {
                    compare(comm, &reducer, dtype, elements, tensor);
                }
            }
        }
    });
}

#[test]
fn canonical_collectives_of_private_buckets_give_the_bits_of_shared_ones() {
    for grid in [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)] {
        compare_all(grid, true);
    }
}

#[test]
fn fast_collectives_of_private_buckets_give_the_bits_of_shared_ones() {
    for grid in [(1, 3), (3, 1), (3, 2), (2, 3)] {
        compare_all(grid, false);
    }
}

#[test]
#[ignore = "long: a minute of larger grids and buckets"]
fn large_private_buckets_give_the_bits_of_shared_ones() {
    for (grid, canonical) in [((2, 4), true), ((4, 2), true), ((8, 1), true), ((3, 3), false)] {
        on_grid(grid, 5, |comm, members| {
            let options = Options { canonical, chunk_bytes: 4096, ..Options::default() };
            let reducer = HfReduce::new(comm, &members, &options).expect("a grid");
            for dtype in [DType::F32, DType::Bf16] {
                for elements in [100_000, 250_007] {
                    compare(comm, &reducer, dtype, elements, Tensor::Slow);
                }
            }
        });
    }
}

/// ZeRO-1 on a device: gradients scattered, the shard updated there, weights gathered; beside the plain tree.
#[test]
fn a_sharded_step_on_private_buckets_is_the_reference_step() {
    let elements = 3000;
    for grid in [(1, 4), (2, 2), (4, 1)] {
        let inputs: Vec<Vec<f32>> = (0..4).map(|rank| noise(13, rank, elements)).collect();
        let expected: Vec<u32> =
            reference(&inputs).iter().map(|sum| (1.0 - 0.5 * sum).to_bits()).collect();
        let shards = [0..0, 0..1000, 1000..1007, 1007..3000];
        on_grid(grid, 9, |comm, members| {
            let options = Options { chunk_bytes: 512, ..Options::default() };
            let reducer = HfReduce::new(comm, &members, &options).expect("a grid");
            let me = comm.rank().index();
            let [gradients, weights] = [1, 2].map(|seed| {
                let device = Box::new(Slow::new(DType::F32, elements, seed));
                reducer.private_bucket(DType::F32, elements, device).expect("memory")
            });
            write(&gradients, bytemuck::cast_slice(&inputs[me]));
            write(&weights, bytemuck::cast_slice(&vec![1f32; elements]));
            let scatter = reducer.reduce_scatter(&gradients, &shards).expect("started");
            scatter.wait().expect("scattered");
            let sums = read(&gradients);
            let mut updated = read(&weights);
            for at in shards[me].clone() {
                let bytes = at * 4..at * 4 + 4;
                let sum: f32 = bytemuck::pod_read_unaligned(&sums[bytes.clone()]);
                updated[bytes].copy_from_slice(&(1.0 - 0.5 * sum).to_le_bytes());
            }
            write(&weights, &updated);
            reducer.gather(&weights, &shards).expect("started").wait().expect("gathered");
            let found: Vec<u32> = words(&read(&weights));
            assert!(found == expected, "{grid:?}, rank {me}");
        });
    }
}

/// Pieces as short as can be, and as long as the bucket.
#[test]
fn any_chunk_size_gives_the_same_bits() {
    let inputs: Vec<Vec<f32>> = (0..4).map(|rank| noise(3, rank, 700)).collect();
    let expected: Vec<u32> = reference(&inputs).iter().map(|sum| sum.to_bits()).collect();
    for (grid, chunk_bytes) in [((1, 4), 1), ((2, 2), 1), ((4, 1), 1), ((2, 2), 1 << 20)] {
        on_grid(grid, 2, |comm, members| {
            let options = Options { chunk_bytes, ..Options::default() };
            let reducer = HfReduce::new(comm, &members, &options).expect("a grid");
            let device = Box::new(Slow::new(DType::F32, 700, 4));
            let bucket = reducer.private_bucket(DType::F32, 700, device).expect("memory");
            write(&bucket, bytemuck::cast_slice(&inputs[comm.rank().index()]));
            reducer.all_reduce(&bucket).expect("started").wait().expect("reduced");
            let found: Vec<u32> = words(&read(&bucket));
            assert!(found == expected, "{grid:?}, {chunk_bytes} bytes");
        });
    }
}

#[test]
fn a_bucket_says_where_it_lies() {
    on_grid((2, 2), 2, |comm, members: Vec<Rank>| {
        let reducer = HfReduce::new(comm, &members, &Options::default()).expect("a grid");
        let shared = reducer.bucket(DType::Bf16, 8).expect("memory");
        let all = shared.local_memories();
        assert_eq!(all.iter().map(|memory| memory.len()).collect::<Vec<_>>(), [16, 16]);
        assert!(shared.memory().expect("shared").same_start(all[comm.rank().index() % 2]));
        assert!(shared.with_device(|_| ()).is_none());
        let device = at_home(DType::Bf16, 8);
        let private = reducer.private_bucket(DType::Bf16, 8, device).expect("memory");
        assert!(private.memory().is_none() && private.local_memories().is_empty());
        assert!(private.with_device(|_| ()).is_some());
    });
}
