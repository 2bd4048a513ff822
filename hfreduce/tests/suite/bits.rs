//! Which bits a reduction yields: canonical on every grid, fast as its twin, bounded against fp64.

use crate::world::{noise, small};
use lampyris_comm::schedule::reference::simulate;
use lampyris_comm::schedule::{Schedule, double_tree, even_slices, ring};
use lampyris_comm::{Algorithm, Communicator, DType, Rank};
use lampyris_hfreduce::{HfReduce, Options};
use std::ops::Range;

/// The canonical order, written down: a balanced binary tree over consecutive leaves.
pub(crate) fn reference(leaves: &[Vec<f32>]) -> Vec<f32> {
    if leaves.len() == 1 {
        return leaves[0].clone();
    }
    let (left, right) = leaves.split_at(leaves.len() / 2);
    let (left, right) = (reference(left), reference(right));
    left.iter().zip(&right).map(|(a, b)| a + b).collect()
}

/// Runs `rank_main` on a grid over the fake network.
pub(crate) fn on_grid<R: Send>(
    (nodes, locals): (usize, usize),
    seed: u64,
    rank_main: impl Fn(&Communicator, Vec<Rank>) -> R + Sync,
) -> Vec<R> {
    let options = lampyris_comm::Options { chunk_bytes: 640, landing_bytes: 16 << 10, ..small() };
    let ranks = nodes * locals;
    let (all, _) = Communicator::fakes(ranks, locals, seed, &options).expect("fakes");
    std::thread::scope(|scope| {
        let start = |comm| {
            let rank_main = &rank_main;
            scope.spawn(move || rank_main(&comm, (0..ranks as u32).map(Rank).collect()))
        };
        let threads: Vec<_> = all.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("rank")).collect()
    })
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// All-reduces each rank's input on a grid; the result of every rank.
fn all_reduce(grid: (usize, usize), inputs: &[Vec<f32>], options: &Options) -> Vec<Vec<f32>> {
    on_grid(grid, 7, |comm, ranks| {
        let reducer = HfReduce::new(comm, &ranks, options).expect("a grid");
        let own = &inputs[comm.rank().index()];
        let bucket = reducer.bucket(DType::F32, own.len()).expect("memory");
        bucket.with(|elements: &mut [f32]| elements.copy_from_slice(own));
        reducer.all_reduce(&bucket).expect("started").wait().expect("reduced");
        bucket.with(|elements: &mut [f32]| elements.to_vec())
    })
}

const GRIDS: [(usize, usize); 10] =
    [(1, 1), (1, 2), (2, 1), (1, 4), (2, 2), (4, 1), (1, 8), (2, 4), (4, 2), (8, 1)];

#[test]
fn eight_adversarial_leaves_give_the_same_bits_on_every_grid() {
    let adversarial = [1e8f32, -1e8, 1.0, f32::MIN_POSITIVE / 4.0, -1.0, 3e-5, 1e8, -7.0];
    let elements = 1000;
    let leaves: Vec<Vec<f32>> = (0..8)
        .map(|leaf| {
            let value = |i: usize| adversarial[(leaf + i) % 8] * (1.0 + i as f32 * 1e-6);
            (0..elements).map(value).collect()
        })
        .collect();
    let expected = bits(&reference(&leaves));
    // Teeth: left to right gives other bits.
    let mut plain = leaves[0].clone();
    for leaf in &leaves[1..] {
        plain.iter_mut().zip(leaf).for_each(|(sum, value)| *sum += value);
    }
    let differing = bits(&plain).iter().zip(&expected).filter(|(a, b)| a != b).count();
    assert!(
        differing > elements / 4,
        "only {differing} of {elements} elements tell the orders apart"
    );
    for grid in GRIDS {
        let ranks = grid.0 * grid.1;
        let own: Vec<Vec<f32>> = leaves.chunks(8 / ranks).map(reference).collect();
        for result in all_reduce(grid, &own, &Options::default()) {
            assert!(bits(&result) == expected, "{grid:?}");
        }
    }
}

/// The fast order of a grid: left to right inside the node, the algorithm's between nodes, per column.
fn fast_twin(
    (nodes, locals): (usize, usize),
    inputs: &[Vec<f32>],
    algorithm: Algorithm,
) -> Vec<f32> {
    let elements = inputs[0].len();
    let shards = even_slices(elements, nodes * locals);
    let node_sum = |node: usize, range: &Range<usize>| -> Vec<f32> {
        let mut sum = inputs[node * locals][range.clone()].to_vec();
        for local in 1..locals {
            let other = &inputs[node * locals + local][range.clone()];
            sum.iter_mut().zip(other).for_each(|(s, o)| *s += o);
        }
        sum
    };
    let mut out = vec![0.0; elements];
    for local in 0..locals {
        let slices: Vec<Range<usize>> =
            (0..nodes).map(|node| shards[node * locals + local].clone()).collect();
        let build = |node| match algorithm {
            Algorithm::DoubleTree => double_tree::all_reduce(node, nodes, &slices, 160),
            _ => ring::all_reduce(node, &slices, 160),
        };
        let schedules: Vec<Schedule> = (0..nodes).map(build).collect();
        let add = |a: Vec<f32>, b: Vec<f32>| a.iter().zip(&b).map(|(a, b)| a + b).collect();
        let held = simulate(&schedules, node_sum, add, |_| 0).expect("not stuck");
        for piece in &schedules[0].pieces {
            out[piece.range.clone()].copy_from_slice(&held[0][&piece.index]);
        }
    }
    out
}

#[test]
fn fast_sums_are_their_twins_on_odd_grids() {
    for grid in [(1, 3), (3, 1), (2, 3), (3, 2), (5, 1), (1, 5)] {
        for algorithm in [Algorithm::Ring, Algorithm::DoubleTree] {
            let options =
                Options { canonical: false, algorithm: Some(algorithm), ..Options::default() };
            let inputs: Vec<Vec<f32>> = (0..grid.0 * grid.1).map(|r| noise(5, r, 3001)).collect();
            let expected = bits(&fast_twin(grid, &inputs, algorithm));
            let results = on_grid(grid, 3, |comm, ranks| {
                let reducer = HfReduce::new(comm, &ranks, &options).expect("a grid");
                let own = &inputs[comm.rank().index()];
                let bucket = reducer.bucket(DType::F32, own.len()).expect("memory");
                bucket.with(|elements: &mut [f32]| elements.copy_from_slice(own));
                reducer.all_reduce(&bucket).expect("started").wait().expect("reduced");
                bucket.with(|elements: &mut [f32]| elements.to_vec())
            });
            for result in results {
                assert!(bits(&result) == expected, "{grid:?} {algorithm}");
            }
        }
    }
}

#[test]
fn sixteen_bit_buckets_stay_within_the_bound_and_agree() {
    use half::bf16;
    for grid in [(1, 4), (2, 2), (4, 1)] {
        let inputs: Vec<Vec<bf16>> = (0..4)
            .map(|rank| noise(3, rank, 2000).into_iter().map(bf16::from_f32).collect())
            .collect();
        let results = on_grid(grid, 5, |comm, ranks| {
            let reducer = HfReduce::new(comm, &ranks, &Options::default()).expect("a grid");
            let own = &inputs[comm.rank().index()];
            let bucket = reducer.bucket(DType::Bf16, own.len()).expect("memory");
            bucket.with(|elements: &mut [bf16]| elements.copy_from_slice(own));
            reducer.all_reduce(&bucket).expect("started").wait().expect("reduced");
            bucket.with(|elements: &mut [bf16]| elements.to_vec())
        });
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "{grid:?}: ranks differ");
        for (i, value) in results[0].iter().enumerate() {
            let exact: f64 = inputs.iter().map(|input| f64::from(input[i].to_f32())).sum();
            let size: f64 = inputs.iter().map(|input| f64::from(input[i].to_f32()).abs()).sum();
            let half_ulp = 2f64.powi(exact.abs().max(f64::MIN_POSITIVE).log2().floor() as i32 - 8);
            let bound = 5.0 * 2f64.powi(-24) * size + half_ulp;
            assert!((f64::from(value.to_f32()) - exact).abs() <= bound, "{grid:?} element {i}");
        }
    }
}

#[test]
fn scatter_and_gather_work_on_any_cut_and_make_an_all_reduce() {
    // Uneven shards, an empty one, and a rest that nobody owns.
    let cuts: [[Range<usize>; 4]; 3] = [
        [0..100, 100..100, 100..1777, 1777..2000],
        [500..900, 0..500, 1000..1003, 1003..1900],
        // All to, and all from, one rank.
        [0..0, 0..0, 0..2000, 0..0],
    ];
    for grid in [(1, 4), (2, 2), (4, 1)] {
        let inputs: Vec<Vec<f32>> = (0..4).map(|rank| noise(13, rank, 2000)).collect();
        let expected = reference(&inputs);
        for shards in &cuts {
            let results = on_grid(grid, 11, |comm, ranks| {
                let reducer = HfReduce::new(comm, &ranks, &Options::default()).expect("a grid");
                let me = comm.rank().index();
                let gradients = reducer.bucket(DType::F32, 2000).expect("memory");
                let parameters = reducer.bucket(DType::F32, 2000).expect("memory");
                gradients.with(|elements: &mut [f32]| elements.copy_from_slice(&inputs[me]));
                let scatter = reducer.reduce_scatter(&gradients, shards).expect("started");
                scatter.wait().expect("scattered");
                // The optimizer's step: the shard's sums become the shard's parameters.
                let own = shards[me].clone();
                let shard = gradients.with(|g: &mut [f32]| g[own.clone()].to_vec());
                parameters.with(|p: &mut [f32]| p[own].copy_from_slice(&shard));
                reducer.gather(&parameters, shards).expect("started").wait().expect("gathered");
                parameters.with(|p: &mut [f32]| p.to_vec())
            });
            for result in results {
                for shard in shards {
                    let same = bits(&result[shard.clone()]) == bits(&expected[shard.clone()]);
                    assert!(same, "{grid:?} {shard:?}");
                }
            }
        }
    }
}

#[test]
fn many_buckets_in_flight() {
    for grid in [(1, 2), (2, 2)] {
        let ranks = grid.0 * grid.1;
        on_grid(grid, 21, |comm, members| {
            let reducer = HfReduce::new(comm, &members, &Options::default()).expect("a grid");
            let me = comm.rank().index() as f32;
            let buckets: Vec<_> =
                (0..6).map(|i| reducer.bucket(DType::F32, 300 * i + 1).expect("memory")).collect();
            for round in 0..3 {
                for bucket in &buckets {
                    bucket.with(|e: &mut [f32]| e.fill(me + round as f32));
                }
                let running: Vec<_> =
                    buckets.iter().map(|b| reducer.all_reduce(b).expect("started")).collect();
                running.into_iter().for_each(|r| r.wait().expect("reduced"));
                let sum = (0..ranks).map(|r| r as f32 + round as f32).sum::<f32>();
                for bucket in &buckets {
                    bucket.with(|e: &mut [f32]| assert!(e.iter().all(|value| *value == sum)));
                }
            }
        });
    }
}

#[test]
fn what_cannot_work_is_refused() {
    on_grid((1, 3), 1, |comm, ranks| {
        let error = HfReduce::new(comm, &ranks, &Options::default()).expect_err("three ranks");
        assert!(error.to_string().contains("powers of two"), "{error}");
        let fast = Options { canonical: false, ..Options::default() };
        let reducer = HfReduce::new(comm, &ranks, &fast).expect("any number");
        let bucket = reducer.bucket(DType::F32, 10).expect("memory");
        let error = reducer.reduce_scatter(&bucket, &[0..5, 4..10, 10..10]).expect_err("overlap");
        assert!(error.to_string().contains("overlap"), "{error}");
    });
}

/// Two reducers over the same ranks, each with more buckets than the engine runs collectives at once, begun in one order
/// on one node and in the other order on the other node: neither keeps the other from its turn.
#[test]
fn reducers_do_not_take_each_others_places() {
    let sums = on_grid((2, 2), 11, |comm, ranks| {
        let reducers =
            [0, 1].map(|_| HfReduce::new(comm, &ranks, &Options::default()).expect("a grid"));
        let buckets = reducers.each_ref().map(|reducer| -> Vec<_> {
            let bucket = |n: usize| {
                let bucket = reducer.bucket(DType::F32, 100).expect("memory");
                bucket.with(|elements: &mut [f32]| elements.fill(n as f32));
                bucket
            };
            (0..30).map(bucket).collect()
        });
        let first = comm.rank().index() / 2;
        let mut running = Vec::new();
        for which in [first, 1 - first] {
            for bucket in &buckets[which] {
                running.push(reducers[which].all_reduce(bucket).expect("started"));
            }
        }
        running.into_iter().for_each(|reduction| reduction.wait().expect("reduced"));
        let sum =
            |bucket: &lampyris_hfreduce::Bucket| bucket.with(|elements: &mut [f32]| elements[99]);
        buckets.map(|buckets| buckets.iter().map(sum).collect::<Vec<f32>>())
    });
    let expected: Vec<f32> = (0..30u8).map(|n| 4.0 * f32::from(n)).collect();
    assert!(sums.iter().flatten().all(|found| *found == expected), "{sums:?}");
}
