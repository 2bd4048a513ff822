//! `lampyris bench` of collectives: small, to see that it runs, checks its results and reports.

use crate::desk::Desk;
use serde_json::Value;

fn report(arguments: &[&str]) -> Value {
    let ended = Desk::new("").run(arguments);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).expect("the bench prints JSON")
}

#[test]
fn the_bench_starts_ranks_and_reports_every_size() {
    let one_node = ["--ranks", "2", "--sizes", "0.25,1", "--rounds", "2", "--json"];
    let in_shared = report(&[&["bench", "allreduce"], &one_node[..]].concat());
    let private = report(&[&["bench", "allreduce", "--private"], &one_node[..]].concat());
    let exchanged = report(&[&["bench", "alltoall"], &one_node[..]].concat());
    for (report, floor) in [(in_shared, true), (private, false), (exchanged, false)] {
        let lines = report["lines"].as_array().expect("a list");
        assert_eq!(lines.len(), 2);
        for line in lines {
            let number = |key: &str| line[key].as_f64().unwrap_or(0.0);
            assert!(0.0 < number("min_s") && number("min_s") <= number("median_s"), "{line}");
            assert!(number("host_bytes") > 0.0 && number("memcpy_s") > 0.0, "{line}");
            assert_eq!(number("network_bytes"), 0.0, "{line}");
            assert_eq!(line["floor_s"].is_number(), floor, "{line}");
        }
    }
}

#[test]
fn between_nodes_the_bench_counts_what_crosses_the_network() {
    let report = report(&[
        "bench",
        "allreduce",
        "--ranks",
        "4",
        "--nodes",
        "2",
        "--sizes",
        "1",
        "--seconds",
        "0.1",
        "--dtype",
        "bf16",
        "--algorithm",
        "ring",
        "--fast",
        "--json",
    ]);
    let line = &report["lines"][0];
    // Two nodes exchange partial sums of half the buffer each, in fp32, and results of the other half, in bf16.
    let network = line["network_bytes"].as_f64().expect("a number");
    assert!((1.5e6..1.8e6).contains(&network), "{network}");
    assert!(report["raw_stream"].as_f64().expect("a number") > 1e6);
}

#[test]
fn the_table_of_algorithms_is_printed_with_overrides_in_front() {
    let plain = Desk::new("").run(&["bench", "table"]);
    assert!(plain.stdout.contains("double-tree") && plain.stdout.contains("--prefer"));
    let row = "all-reduce,<=65536,>=4=ring";
    let changed = Desk::new("").run(&["bench", "table", "--prefer", row]);
    let first = changed.stdout.lines().nth(1).expect("a row below the head");
    let words: Vec<&str> = first.split_whitespace().collect();
    assert_eq!(words, ["all-reduce", "65536", ">=", "4", "ring"]);
    let bad = Desk::new("").run(&["bench", "table", "--prefer", "all-reduce=rign"]);
    assert_ne!(bad.code, 0);
    assert!(bad.stderr.contains("rign"), "{}", bad.stderr);
}
