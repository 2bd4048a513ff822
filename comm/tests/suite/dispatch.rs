//! Expert dispatch against an oracle that sees all ranks at once, over both paths.

use crate::world::{Net, run, small};
use lampyris_comm::dispatch::{Dispatcher, Handle, Options as Dispatch, Padding, Path};
use lampyris_comm::{Communicator, Error, Options, Rank};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const ROW_BYTES: usize = 37;
const SLOTS: usize = 3;

fn tight() -> Options {
    Options { chunk_bytes: 512, landing_bytes: 32 << 10, ..small() }
}

/// How tokens choose.
#[derive(Debug, Clone, Copy)]
enum Taste {
    /// Distinct experts from a generator.
    Any,
    /// All choices are the last expert.
    OneExpert,
    /// As `Any`, but odd ranks have no token.
    SomeEmpty,
    /// Nobody has a token.
    None,
}

/// The choices `[tokens, SLOTS]` of a rank.
fn choices(taste: Taste, rank: usize, experts: usize) -> Vec<u32> {
    let tokens = match taste {
        Taste::None => 0,
        Taste::SomeEmpty if rank % 2 == 1 => 0,
        _ => 20 + 7 * rank,
    };
    let mut state = 1 + rank as u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 33) as usize
    };
    let mut chosen = Vec::new();
    for _ in 0..tokens {
        let mut left: Vec<u32> = (0..experts as u32).collect();
        for _ in 0..SLOTS {
            chosen.push(match taste {
                Taste::OneExpert => experts as u32 - 1,
                _ => left.remove(next() % left.len()),
            });
        }
    }
    chosen
}

/// Bytes that name what they are.
fn row(rank: usize, number: usize, bytes: usize) -> impl Iterator<Item = u8> {
    (0..bytes).map(move |i| (1 + rank * 53 + number * 7 + i * 11) as u8)
}

/// All rows of a rank: one per token, or one per choice.
fn rows(rank: usize, count: usize, bytes: usize) -> Vec<u8> {
    (0..count).flat_map(|number| row(rank, number, bytes)).collect()
}

/// What `me` must receive: by (expert, source, choice), padded. `per_choice`: rows of choices instead of tokens.
fn oracle(
    all: &[Vec<u32>],
    me: usize,
    experts: usize,
    padding: Padding,
    per_choice: bool,
) -> Vec<u8> {
    let owned = experts / all.len();
    let mut out = Vec::new();
    let pad = |out: &mut Vec<u8>, rows: usize| {
        out.resize((out.len() / ROW_BYTES).next_multiple_of(rows) * ROW_BYTES, 0);
    };
    for expert in me * owned..(me + 1) * owned {
        for (source, chosen) in all.iter().enumerate() {
            for (choice, _) in chosen.iter().enumerate().filter(|(_, e)| **e as usize == expert) {
                let number = if per_choice { choice } else { choice / SLOTS };
                out.extend(row(source, number, ROW_BYTES));
            }
            if let Padding::Blocks(rows) = padding {
                pad(&mut out, rows);
            }
        }
        if let Padding::Experts(rows) = padding {
            pad(&mut out, rows);
        }
    }
    out
}

/// Everything in flight at once, three layers deep; then compared.
fn check(net: Net, ranks: usize, padding: Padding, path: Path) {
    let experts = 2 * ranks.max(2);
    let tastes = [Taste::Any, Taste::OneExpert, Taste::SomeEmpty, Taste::None];
    run(net, ranks, &tight(), |comm: Communicator| {
        let me = comm.rank().index();
        let options = Dispatch { padding, path: Some(path) };
        let dispatcher = Dispatcher::new(&comm.world(), experts, options).expect("a dispatcher");
        let start = |taste: &Taste| {
            let chosen = choices(*taste, me, experts);
            let count = chosen.len();
            let handle = dispatcher.start_route(chosen, SLOTS).expect("route");
            let make =
                |routes: &lampyris_comm::dispatch::Routes| vec![0xee; routes.rows() * ROW_BYTES];
            let tokens = rows(me, count / SLOTS, ROW_BYTES);
            let tokens =
                dispatcher.start_dispatch(&handle, tokens, ROW_BYTES, make).expect("tokens");
            let each = rows(me, count, ROW_BYTES);
            let each =
                dispatcher.start_dispatch_choices(&handle, each, ROW_BYTES, make).expect("choices");
            (handle, tokens, each)
        };
        let started: Vec<_> = tastes.iter().map(start).collect();
        let mut homes = Vec::new();
        for (taste, (handle, tokens, each)) in tastes.iter().zip(started) {
            let place = format!("{net:?}, rank {me} of {ranks}, {padding:?}, {path:?}, {taste:?}");
            let all: Vec<_> = (0..ranks).map(|rank| choices(*taste, rank, experts)).collect();
            let (_, received) = tokens.wait().expect("tokens");
            assert!(received == oracle(&all, me, experts, padding, false), "tokens: {place}");
            check_routes(&handle, &all, me);
            let (sent, each) = each.wait().expect("choices");
            assert!(each == oracle(&all, me, experts, padding, true), "choices: {place}");
            // Home again: what was sent per choice, and a token's row for each of its choices.
            let out = vec![0u8; sent.len()];
            let both = [received, each].map(|rows| {
                dispatcher.start_combine(&handle, rows, ROW_BYTES, out.clone()).expect("combine")
            });
            homes.push((place, sent, both));
        }
        for (place, sent, [tokens, each]) in homes {
            let home = tokens.wait().expect("combine").1;
            let count = sent.len() / ROW_BYTES;
            let expected: Vec<u8> =
                (0..count).flat_map(|choice| row(me, choice / SLOTS, ROW_BYTES)).collect();
            assert!(home == expected, "tokens home: {place}");
            assert!(each.wait().expect("combine").1 == sent, "choices home: {place}");
        }
    });
}

fn check_routes(handle: &Handle, all: &[Vec<u32>], me: usize) {
    let routes = handle.wait().expect("counts");
    assert_eq!(routes.tokens(), all[me].len() / SLOTS);
    for expert in 0..routes.experts() {
        let of = |chosen: &Vec<u32>| chosen.iter().filter(|e| **e as usize == expert).count();
        for (source, chosen) in all.iter().enumerate() {
            assert_eq!(routes.count(source, expert), of(chosen));
        }
        assert_eq!(routes.load(expert), all.iter().map(of).sum::<usize>());
    }
}

#[test]
fn dispatch_is_its_oracle_and_combine_is_its_inverse() {
    for path in [Path::Direct, Path::PerNode] {
        for (ranks, per_node) in [(1, 1), (2, 1), (4, 2), (5, 3), (6, 2), (7, 7)] {
            check(Net::FakeNodes(ranks as u64, per_node), ranks, Padding::Experts(4), path);
        }
        check(Net::FakeNodes(3, 2), 4, Padding::Blocks(8), path);
        check(Net::Shm, 3, Padding::Experts(1), path);
        check(Net::Nodes(2), 4, Padding::Experts(32), path);
    }
}

#[test]
fn a_token_crosses_to_a_node_once() {
    // Four ranks, two per node, four experts: a token that chose three experts needs both nodes.
    let (ranks, experts, tokens, row_bytes) = (4, 4, 64, 4096);
    let network = |path| -> u64 {
        let sent = run(Net::Nodes(2), ranks, &small(), |comm: Communicator| {
            let options = Dispatch { path: Some(path), ..Dispatch::default() };
            let dispatcher =
                Dispatcher::new(&comm.world(), experts, options).expect("a dispatcher");
            let chosen: Vec<u32> = (0..tokens).flat_map(|_| [0, 1, 2, 3]).collect();
            let handle = dispatcher.start_route(chosen, 4).expect("route");
            handle.wait().expect("counts");
            let before = comm.counters().network.load(Ordering::Relaxed);
            let rows = dispatcher
                .start_dispatch(&handle, vec![1u8; tokens * row_bytes], row_bytes, move |routes| {
                    vec![0u8; routes.rows() * row_bytes]
                })
                .expect("started");
            rows.wait().expect("dispatched");
            comm.counters().network.load(Ordering::Relaxed) - before
        });
        sent.iter().sum()
    };
    let once = (ranks * tokens * row_bytes) as u64;
    let headers = 1 << 12;
    let (direct, per_node) = (network(Path::Direct), network(Path::PerNode));
    assert!((2 * once..2 * once + headers).contains(&direct), "{direct} of {once}");
    assert!((once..once + headers).contains(&per_node), "{per_node} of {once}");
}

#[test]
fn bad_buffers_and_choices_are_refused_by_name() {
    run(Net::Fake(1), 1, &small(), |comm: Communicator| {
        let new = |experts| Dispatcher::new(&comm.world(), experts, Dispatch::default());
        assert!(matches!(new(0), Err(Error::Invalid(_))));
        let dispatcher = new(4).expect("a dispatcher");
        assert!(dispatcher.start_route(vec![0, 1, 2], 2).is_err(), "one and a half tokens");
        let beyond = dispatcher.start_route(vec![0, 4], 2).expect("found out later");
        let error = beyond.wait().expect_err("there is no expert 4");
        assert!(error.to_string().contains("expert 4 of 4"), "{error}");
        let handle = dispatcher.start_route(vec![0, 3], 2).expect("route");
        let make = |bytes: usize| move |_: &lampyris_comm::dispatch::Routes| vec![0u8; bytes];
        for (input, output) in [(9, 20), (10, 19)] {
            let pending = dispatcher
                .start_dispatch(&handle, vec![0u8; input], 10, make(output))
                .expect("found out later");
            let error = pending.wait().expect_err("the lengths are wrong");
            assert!(error.to_string().contains("of 10 bytes"), "{error}");
        }
        let other = new(2).expect("a dispatcher");
        assert!(other.start_combine(&handle, vec![0u8; 20], 10, vec![0u8; 20]).is_err());
    });
}

#[test]
fn an_abort_ends_a_dispatch_that_waits_for_a_peer() {
    run(Net::Shm, 2, &small(), |comm: Communicator| {
        comm.world().barrier().expect("all are there");
        if comm.rank() == Rank(1) {
            // Never dispatches.
            comm.world().barrier().expect("rank 0 has begun");
            comm.abort("no more");
            return;
        }
        let dispatcher =
            Dispatcher::new(&comm.world(), 2, Dispatch::default()).expect("a dispatcher");
        let handle = dispatcher.start_route(vec![0, 1], 2).expect("route");
        let rows = dispatcher.start_dispatch(&handle, vec![0u8; 8], 8, |_| Vec::new());
        comm.world().barrier().expect("rank 1 is there");
        let began = Instant::now();
        let error = handle.wait().expect_err("aborted");
        assert!(matches!(error, Error::Aborted { rank: Rank(1), .. }), "{error}");
        assert!(rows.expect("started").wait().is_err());
        assert!(began.elapsed() < Duration::from_secs(2));
    });
}
