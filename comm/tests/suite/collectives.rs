//! Every collective over every transport against its slow twin, bit for bit.

use crate::world::{Net, noise, run, small};
use lampyris_comm::schedule::reference::simulate;
use lampyris_comm::schedule::{Schedule, double_tree, even_slices, halving, ring};
use lampyris_comm::{Algorithm, Communicator, Error, Kind, Options, Rank};
use std::ops::Range;

const CHUNK_BYTES: usize = 512;

fn tight() -> Options {
    Options { chunk_bytes: CHUNK_BYTES, landing_bytes: 16 << 10, ..small() }
}

/// What the schedules of this algorithm compute, run by the interpreter on numbers.
fn twin(algorithm: Algorithm, inputs: &[Vec<f32>]) -> Vec<f32> {
    let (members, elements) = (inputs.len(), inputs[0].len());
    let slices = even_slices(elements, members);
    let chunk = 64;
    let build = |m| match algorithm {
        Algorithm::Ring => ring::all_reduce(m, &slices, chunk),
        Algorithm::Halving => halving::all_reduce(m, &slices, chunk),
        Algorithm::DoubleTree => double_tree::all_reduce(m, members, &slices, chunk),
        _ => halving::doubling(m, members, elements, chunk),
    };
    let schedules: Vec<Schedule> = (0..members).map(build).collect();
    let own = |member: usize, range: &Range<usize>| inputs[member][range.clone()].to_vec();
    let add = |a: Vec<f32>, b: Vec<f32>| a.iter().zip(&b).map(|(a, b)| a + b).collect();
    let held = simulate(&schedules, own, add, |_| 0).expect("not stuck");
    let mut out = vec![0.0; elements];
    for piece in &schedules[0].pieces {
        out[piece.range.clone()].copy_from_slice(&held[0][&piece.index]);
    }
    out
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// All algorithms and lengths in one world, several in flight.
fn check_all_reduces(net: Net, ranks: usize, lengths: &[usize]) {
    let algorithms =
        [Algorithm::Ring, Algorithm::DoubleTree, Algorithm::Doubling, Algorithm::Halving];
    let algorithms: Vec<Algorithm> =
        algorithms.into_iter().filter(|a| a.suits(Kind::AllReduce, ranks)).collect();
    let cases: Vec<(usize, Algorithm)> =
        lengths.iter().flat_map(|&n| algorithms.iter().map(move |&a| (n, a))).collect();
    let inputs = |elements| (0..ranks).map(move |rank| noise(7, rank, elements));
    let results = run(net, ranks, &tight(), |comm: Communicator| {
        let start = |&(elements, algorithm): &(usize, Algorithm)| {
            let group = comm.world().with_algorithm(Kind::AllReduce, algorithm);
            let own = noise(7, comm.rank().index(), elements);
            group.start_all_reduce::<f32, _>(own).expect("started")
        };
        let pending: Vec<_> = cases.iter().map(start).collect();
        pending.into_iter().map(|p| p.wait().expect("all-reduce")).collect::<Vec<_>>()
    });
    for (case, (elements, algorithm)) in cases.iter().enumerate() {
        let expected = bits(&twin(*algorithm, &inputs(*elements).collect::<Vec<_>>()));
        for (rank, result) in results.iter().enumerate() {
            let place = format!("{net:?}, {ranks} ranks, {elements} by {algorithm}, rank {rank}");
            assert!(bits(&result[case]) == expected, "{place}");
        }
    }
}

#[test]
fn all_reduce_is_its_twin_on_1_to_33_fake_ranks() {
    for ranks in 1..=33 {
        check_all_reduces(Net::Fake(ranks as u64), ranks, &[1500]);
    }
}

/// |a - b| <= (P + 1) 2^-24 sum |x| per element, plus half an ulp of a 16-bit output, for every number of ranks.
#[test]
fn sums_stay_within_the_bound_against_fp64_on_1_to_33_ranks() {
    use half::{bf16, f16};
    const ELEMENTS: usize = 301;
    for ranks in 1..=33 {
        let inputs: Vec<Vec<f32>> = (0..ranks).map(|rank| noise(21, rank, ELEMENTS)).collect();
        let algorithms = [Algorithm::Ring, Algorithm::DoubleTree, Algorithm::Doubling];
        let results = run(Net::Fake(ranks as u64), ranks, &tight(), |comm: Communicator| {
            let own = &inputs[comm.rank().index()];
            let sums = algorithms.map(|algorithm| {
                // Starts one element into the memory: aligned to nothing but its type.
                let mut shifted = [&[0.0], &own[..]].concat();
                let group = comm.world().with_algorithm(Kind::AllReduce, algorithm);
                group.all_reduce(&mut shifted[1..]).expect("all-reduce");
                shifted.split_off(1)
            });
            let mut brain: Vec<bf16> = own.iter().map(|value| bf16::from_f32(*value)).collect();
            let mut half: Vec<f16> = own.iter().map(|value| f16::from_f32(*value)).collect();
            comm.world().all_reduce(&mut brain).expect("all-reduce");
            comm.world().all_reduce(&mut half).expect("all-reduce");
            (sums, brain, half)
        });
        let within = |i: usize, got: f64, input: &dyn Fn(usize) -> f64, digits: i32| {
            let exact: f64 = (0..ranks).map(input).sum();
            let size: f64 = (0..ranks).map(|rank| input(rank).abs()).sum();
            let rounding = if digits == 24 { 0.0 } else { exact.abs() * 2f64.powi(-digits) };
            let bound = (ranks + 1) as f64 * 2f64.powi(-24) * size + rounding;
            assert!((got - exact).abs() <= bound, "{ranks} ranks, element {i}: {got} for {exact}");
        };
        let (sums, brain, half) = &results[0];
        for i in 0..ELEMENTS {
            for sum in sums {
                within(i, f64::from(sum[i]), &|rank| f64::from(inputs[rank][i]), 24);
            }
            let rounded = |rank: usize| bf16::from_f32(inputs[rank][i]).to_f64();
            within(i, brain[i].to_f64(), &rounded, 8);
            let rounded = |rank: usize| f16::from_f32(inputs[rank][i]).to_f64();
            within(i, half[i].to_f64(), &rounded, 11);
        }
        let same = |pair: &[_]| pair[0] == pair[1];
        assert!(results.windows(2).all(same), "{ranks} ranks differ");
    }
}

#[test]
fn all_reduce_is_its_twin_over_real_transports() {
    for net in [Net::Shm, Net::Tcp, Net::Nodes(2)] {
        for ranks in [2, 3, 4] {
            check_all_reduces(net, ranks, &[0, 1, 127, 128, 129, 20_000]);
        }
    }
}

#[test]
fn rings_pass_data_of_every_collective() {
    for net in [Net::Fake(5), Net::Shm, Net::Nodes(2)] {
        for ranks in [1, 2, 3, 4] {
            run(net, ranks, &tight(), |comm: Communicator| {
                let (group, me) = (comm.world(), comm.rank().index());
                group.barrier().expect("barrier");
                for root in 0..ranks {
                    for elements in [0, 1, 5000] {
                        let mut buffer = noise(1, me, elements);
                        group.broadcast(&mut buffer, root).expect("broadcast");
                        assert_eq!(bits(&buffer), bits(&noise(1, root, elements)));
                        let mut sum = vec![me as i64 + 1; elements];
                        group.reduce(&mut sum, root).expect("reduce");
                        let total = (ranks * (ranks + 1) / 2) as i64;
                        assert!(me != root || sum.iter().all(|value| *value == total));
                    }
                }
                let mine = noise(2, me, 777);
                let mut all = vec![0.0; 777 * ranks];
                group.all_gather(&mine, &mut all).expect("all-gather");
                let expected: Vec<f32> = (0..ranks).flat_map(|rank| noise(2, rank, 777)).collect();
                assert_eq!(bits(&all), bits(&expected));
                let mut buffer = vec![1i64 << me; 1000];
                let slice = group.reduce_scatter(&mut buffer).expect("reduce-scatter");
                assert!(buffer[slice].iter().all(|value| *value == (1 << ranks) - 1));
            });
        }
    }
}

#[test]
fn sixteen_bit_sums_are_rounded_once_over_any_number_of_ranks() {
    use half::bf16;
    for ranks in [2, 5, 8] {
        let inputs: Vec<Vec<bf16>> = (0..ranks)
            .map(|rank| noise(3, rank, 3000).into_iter().map(bf16::from_f32).collect())
            .collect();
        let results = run(Net::Fake(8), ranks, &tight(), |comm: Communicator| {
            let mut buffer = inputs[comm.rank().index()].clone();
            comm.world().all_reduce(&mut buffer).expect("all-reduce");
            buffer
        });
        for (i, value) in results[0].iter().enumerate() {
            let exact: f64 = inputs.iter().map(|input| f64::from(input[i].to_f32())).sum();
            let size: f64 = inputs.iter().map(|input| f64::from(input[i].to_f32()).abs()).sum();
            let bound = (ranks + 1) as f64 * 2f64.powi(-24) * size + exact.abs() * 2f64.powi(-8);
            assert!((f64::from(value.to_f32()) - exact).abs() <= bound, "element {i}");
        }
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]), "ranks differ");
    }
}

#[test]
fn nothing_depends_on_chunk_or_landing_size() {
    let inputs: Vec<Vec<f32>> = (0..4).map(|rank| noise(11, rank, 9001)).collect();
    let mut seen = Vec::new();
    for (chunk_bytes, landing_bytes) in [(128, 8 << 10), (1000, 64 << 10), (1 << 20, 8 << 20)] {
        let options = Options { chunk_bytes, landing_bytes, ..small() };
        for net in [Net::Fake(chunk_bytes as u64), Net::Shm] {
            let results = run(net, 4, &options, |comm: Communicator| {
                let mut out = Vec::new();
                for algorithm in [Algorithm::Ring, Algorithm::DoubleTree, Algorithm::Halving] {
                    let group = comm.world().with_algorithm(Kind::AllReduce, algorithm);
                    let mut buffer = inputs[comm.rank().index()].clone();
                    group.all_reduce(&mut buffer).expect("all-reduce");
                    out.extend(bits(&buffer));
                }
                out
            });
            seen.extend(results);
        }
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn special_values_are_the_same_on_all_ranks() {
    let special = [
        f32::NAN,
        f32::from_bits(0xffc0_1234),
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MIN_POSITIVE / 8.0,
        -0.0,
        0.0,
        f32::MAX,
        1.0,
    ];
    let results = run(Net::Fake(2), 3, &tight(), |comm: Communicator| {
        let me = comm.rank().index();
        let mut buffer: Vec<f32> =
            (0..729).map(|i| special[i / [1, 9, 81][me] % special.len()]).collect();
        let mut small = buffer.clone();
        let world = comm.world();
        world.with_algorithm(Kind::AllReduce, Algorithm::Ring).all_reduce(&mut buffer).expect("ok");
        world
            .with_algorithm(Kind::AllReduce, Algorithm::Doubling)
            .all_reduce(&mut small)
            .expect("ok");
        (bits(&buffer), bits(&small))
    });
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    let nan = f32::NAN.to_bits();
    assert!(results[0].0.iter().all(|b| !f32::from_bits(*b).is_nan() || *b == nan));
    // Denormals survive: no flush to zero anywhere.
    let tiny = (f32::MIN_POSITIVE / 8.0 * 3.0).to_bits();
    assert!(results[0].0.contains(&tiny), "three denormals add up");
}

#[test]
fn all_to_all_moves_every_row_to_its_place() {
    // counts[from][to]: empty rows, everything to one member, and a mixture.
    let tables: [fn(usize, usize) -> usize; 3] =
        [|_, to| if to == 1 { 700 } else { 0 }, |from, to| from * 100 + to, |_, _| 0];
    for net in [Net::Fake(4), Net::Shm, Net::Nodes(2)] {
        for ranks in [2, 3, 4] {
            run(net, ranks, &tight(), |comm: Communicator| {
                let (group, me) = (comm.world(), comm.rank().index());
                for count in tables {
                    let sends: Vec<usize> = (0..ranks).map(|to| count(me, to)).collect();
                    let receives: Vec<usize> = (0..ranks).map(|from| count(from, me)).collect();
                    let row = |from: usize, to: usize| {
                        (0..count(from, to)).map(move |i| (from * 10_000 + to * 1000 + i) as u32)
                    };
                    let input: Vec<u32> = (0..ranks).flat_map(|to| row(me, to)).collect();
                    let expected: Vec<u32> = (0..ranks).flat_map(|from| row(from, me)).collect();
                    let mut output = vec![0u32; expected.len()];
                    group
                        .all_to_all((&input, &sends), (&mut output, &receives))
                        .expect("all-to-all");
                    assert_eq!(output, expected);
                    // And back: the way home is the same exchange with the counts swapped.
                    let mut home = vec![0u32; input.len()];
                    group
                        .all_to_all((&output, &receives), (&mut home, &sends))
                        .expect("all-to-all");
                    assert_eq!(home, input);
                }
            });
        }
    }
}

#[test]
fn messages_between_two_members_keep_their_order() {
    for net in [Net::Fake(6), Net::Shm, Net::Tcp] {
        run(net, 3, &tight(), |comm: Communicator| {
            let (group, me) = (comm.world(), comm.rank().index());
            let (next, previous) = ((me + 1) % 3, (me + 2) % 3);
            let sends: Vec<_> = (0..20u32)
                .map(|i| group.start_send::<u32, _>(vec![i; i as usize * 30], next).expect("send"))
                .collect();
            for i in 0..20u32 {
                let mut buffer = vec![0u32; i as usize * 30];
                group.receive(&mut buffer, previous).expect("receive");
                assert!(buffer.iter().all(|value| *value == i));
            }
            sends.into_iter().for_each(|send| drop(send.wait().expect("sent")));
        });
    }
}

#[test]
fn groups_of_some_ranks_are_independent() {
    run(Net::Fake(9), 6, &tight(), |comm: Communicator| {
        use lampyris_comm::Rank;
        let me = comm.rank().0;
        let half: Vec<Rank> = (0..6).filter(|r| r % 2 == me % 2).map(Rank).collect();
        let pair: Vec<Rank> = (0..6).filter(|r| r / 2 == me / 2).map(Rank).collect();
        let (half, pair) = (comm.group(&half).expect("half"), comm.group(&pair).expect("pair"));
        // Started in different orders on different ranks: only the order inside a group counts.
        let start = |group: &lampyris_comm::Group| {
            group.start_all_reduce::<i64, _>(vec![i64::from(me); 3000]).expect("started")
        };
        let (a, b) = if me < 3 {
            let a = start(&half);
            (a, start(&pair))
        } else {
            let b = start(&pair);
            (start(&half), b)
        };
        let expected = if me.is_multiple_of(2) { 6 } else { 9 };
        assert_eq!(a.wait().expect("half")[2999], expected);
        assert_eq!(b.wait().expect("pair")[0], i64::from(me / 2 * 4 + 1));
    });
}

/// More operations of each of three groups than there are places, begun in another order on every rank: no group can
/// keep another one out.
#[test]
fn groups_begun_in_any_order_do_not_lock_each_other_out() {
    const RUNS: usize = 40;
    let options = Options { operations: 8, ..small() };
    for net in [Net::Fake(3), Net::Shm, Net::Tcp] {
        let sums = run(net, 3, &options, |comm: Communicator| {
            let all: Vec<Rank> = (0..3).map(Rank).collect();
            let groups = [0; 3].map(|_| comm.group(&all).expect("a group"));
            let first = comm.rank().index();
            let mut running = Vec::new();
            for which in (0..3).map(|i| (first + i) % 3) {
                for n in 0..RUNS {
                    let buffer = vec![(which * RUNS + n) as i64; 3];
                    running
                        .push(groups[which].start_all_reduce::<i64, _>(buffer).expect("started"));
                }
            }
            // The places of a group that is gone while its operations run stay theirs.
            drop(groups);
            let mut sums: Vec<i64> =
                running.into_iter().map(|sum| sum.wait().expect("summed")[0]).collect();
            sums.sort_unstable();
            sums
        });
        let expected: Vec<i64> = (0..3 * RUNS as i64).map(|n| 3 * n).collect();
        assert!(sums.iter().all(|found| *found == expected), "{net:?}: {sums:?}");
    }
}

#[test]
fn a_group_more_than_there_are_places_is_refused_until_one_is_gone() {
    let options = Options { operations: 8, ..small() };
    run(Net::Fake(4), 2, &options, |comm: Communicator| {
        let make = || comm.group(&[Rank(0), Rank(1)]);
        // One place is the world's.
        let mut groups: Vec<_> = (0..3).map(|_| make().expect("a group")).collect();
        let Err(Error::Invalid(why)) = make() else { panic!("a fifth group of four") };
        assert!(why.contains("4 groups at a time"), "{why}");
        comm.group(&[comm.rank()]).expect("a rank alone needs no place");
        groups.pop();
        make().expect("room again").barrier().expect("works");
    });
}
