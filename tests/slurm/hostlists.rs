//! The parser of host lists against Slurm's own, on random lists.

use crate::cluster::Cluster;
use lampyris_tests::program;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

const LISTS: usize = 150;

/// `ab[01-03,7]-x[0-1]`: what Slurm writes. In its lists a bracket ends a part.
fn list() -> impl Strategy<Value = String> {
    let range = (0_u32..120, 0_u32..12, 1_usize..4).prop_map(|(low, more, width)| match more {
        0 => format!("{low:0width$}"),
        more => format!("{low:0width$}-{:0width$}", low + more),
    });
    let bracket = prop::collection::vec(range, 1..4).prop_map(|all| format!("[{}]", all.join(",")));
    let piece = ("[a-z]{1,3}-?", bracket).prop_map(|(text, bracket)| format!("{text}{bracket}"));
    let part = prop_oneof![
        3 => prop::collection::vec(piece, 1..3).prop_map(|pieces| pieces.concat()),
        1 => "[a-z]{1,4}[0-9]{0,3}",
    ];
    prop::collection::vec(part, 1..4).prop_map(|parts| parts.join(","))
}

pub(crate) fn as_scontrol_reads_them(cluster: &Cluster) {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    for _ in 0..LISTS {
        let list = list().new_tree(&mut runner).unwrap().current();
        let theirs = cluster.slurm(&format!("scontrol show hostnames '{list}'"));
        let ours = cluster.command(program("lampyris")).args(["slurm", "hosts", &list]).output();
        let ours = String::from_utf8(ours.unwrap().stdout).unwrap();
        assert_eq!(ours, theirs, "{list}");
    }
}
