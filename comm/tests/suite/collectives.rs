//! Every collective over every transport against its slow twin, bit for bit.

use crate::world::{Net, noise, run, small};
use lampyris_comm::schedule::reference::simulate;
use lampyris_comm::schedule::{Schedule, double_tree, even_slices, halving, ring};
use lampyris_comm::{Algorithm, Communicator, Kind, Options};
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

#[test]
fn all_reduce_is_its_twin_over_real_transports() {
    for net in [Net::Shm, Net::Tcp, Net::Nodes(2)] {
        for ranks in [2, 3, 4] {
            check_all_reduces(net, ranks, &[0, 1, 127, 128, 129, 20_000]);
        }
    }
}
