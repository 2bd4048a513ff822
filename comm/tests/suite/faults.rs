//! What survives inside one process: mismatches, aborts, deadlines, generations, stale words, lost peers.

use crate::world::{Net, membership, next_generation, run, small};
use lampyris_comm::{Communicator, Error, Options, Rank};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What an operation of this rank ended with.
fn outcome(comm: &Communicator, elements: usize) -> Error {
    let mut buffer = vec![1.0f32; elements];
    loop {
        if let Err(error) = comm.world().all_reduce(&mut buffer) {
            return error;
        }
    }
}

#[test]
fn mismatched_collectives_name_both_ranks() {
    for net in [Net::Fake(1), Net::Shm, Net::Tcp] {
        let errors = run(net, 2, &small(), |comm: Communicator| {
            let elements = if comm.rank() == Rank(0) { 1000 } else { 1001 };
            outcome(&comm, elements)
        });
        for error in errors {
            let Error::Mismatch { ours, theirs, our_operation, their_operation } = &error else {
                panic!("{error}");
            };
            assert_ne!(ours, theirs);
            let both = format!("{our_operation} {their_operation}");
            assert!(both.contains("1000 x F32") && both.contains("1001 x F32"), "{both}");
        }
    }
    let errors = run(Net::Shm, 2, &small(), |comm: Communicator| {
        if comm.rank() == Rank(0) {
            comm.world().barrier().expect_err("the other broadcasts")
        } else {
            comm.world().broadcast(&mut [0u8; 4], 0).expect_err("the other is at a barrier")
        }
    });
    for error in errors {
        let text = error.to_string();
        assert!(text.contains("barrier") && text.contains("broadcast"), "{text}");
    }
}

#[test]
fn an_abort_ends_every_state_within_100_ms() {
    // Ranks wait in an operation that rank 0 never enters; then a thread of rank 1 aborts.
    for net in [Net::Fake(3), Net::Shm, Net::Tcp] {
        run(net, 3, &small(), |comm: Communicator| {
            comm.world().barrier().expect("all are there");
            if comm.rank() == Rank(0) {
                // Idle: fails at its next call, once the notice is here.
                let error = loop {
                    if let Err(error) = comm.check() {
                        break error;
                    }
                    std::thread::yield_now();
                };
                assert!(matches!(error, Error::Aborted { rank: Rank(1), .. }), "{error}");
                return;
            }
            let aborter = comm.aborter();
            let (aborted, when) = std::sync::mpsc::sync_channel(1);
            let mut buffer = vec![0f32; 1 << 20];
            std::thread::scope(|scope| {
                if comm.rank() == Rank(1) {
                    scope.spawn(move || {
                        std::thread::sleep(Duration::from_millis(50));
                        aborted.send(Instant::now()).expect("listening");
                        aborter.abort("the user changed his mind");
                    });
                }
                let error = comm.world().all_reduce(&mut buffer).expect_err("aborted");
                let ended = Instant::now();
                assert!(matches!(error, Error::Aborted { rank: Rank(1), .. }), "{error}");
                if comm.rank() == Rank(1) {
                    let took = ended - when.recv().expect("sent");
                    assert!(took < Duration::from_millis(100), "{took:?}");
                }
            });
            let again = comm.world().barrier().expect_err("poisoned");
            assert!(again.to_string().contains("changed his mind"), "{again}");
        });
    }
}

#[test]
fn a_deadline_names_who_has_not_entered() {
    for net in [Net::Shm, Net::Tcp] {
        run(net, 4, &small(), |comm: Communicator| {
            comm.world().barrier().expect("all are there");
            if comm.rank() == Rank(2) {
                // Elsewhere: hears from the others that they gave up.
                while comm.check().is_ok() {
                    std::thread::yield_now();
                }
                return;
            }
            let group = comm.world().with_timeout(Duration::from_millis(700));
            let before = Instant::now();
            let error = group.all_reduce(&mut [1.0f32; 100]).expect_err("rank 2 is elsewhere");
            let took = before.elapsed();
            let Error::Timeout { operation, waiting, .. } = &error else { panic!("{error}") };
            assert!(operation.contains("all-reduce #1"), "{operation}");
            let [(Rank(2), what)] = &waiting[..] else { panic!("{error}") };
            assert!(what.contains("has not entered") && what.contains("barrier #0"), "{what}");
            assert!(
                took >= Duration::from_millis(400) && took < Duration::from_secs(3),
                "{took:?}"
            );
        });
    }
}

#[test]
fn a_peer_lost_between_any_two_events_is_an_error_everywhere() {
    for fuse in (0..60).step_by(3) {
        let (communicators, net) = Communicator::fakes(4, 4, fuse, &small()).expect("fakes");
        net.lose_after(Rank(3), fuse);
        std::thread::scope(|scope| {
            for comm in communicators {
                scope.spawn(move || {
                    let error = outcome(&comm, 700);
                    let expected = matches!(
                        error,
                        Error::PeerDead { .. } | Error::Timeout { .. } | Error::Aborted { .. }
                    );
                    assert!(expected, "fuse {fuse}, rank {}: {error}", comm.rank());
                    if comm.rank() != Rank(3) {
                        assert_eq!(error.culprit(), Some(Rank(3)), "fuse {fuse}: {error}");
                    }
                });
            }
        });
    }
}

#[test]
fn words_of_an_older_generation_are_dropped() {
    use lampyris_comm::wire::header::{HEADER_BYTES, Header, Imm, Kind};
    use lampyris_comm::{Attempt, DType, Generation};
    let (communicators, net) = Communicator::fakes(2, 2, 77, &small()).expect("fakes");
    // A header that would be a mismatch if it counted: operation 0 of the same group, another length.
    let worlds: Vec<_> = communicators.iter().map(Communicator::world).collect();
    let group = worlds[0].number();
    let stale = Header {
        attempt: Attempt(1),
        generation: Generation(u32::MAX),
        descriptor: lampyris_comm::wire::header::Descriptor {
            group,
            sequence: 0,
            kind: Kind::AllReduce,
            algorithm: 0,
            dtype: DType::F64,
            root: 0,
            elements: 3,
            chunk: 1,
        },
        slot: 29,
        landings: 1,
        landing_bytes: 64,
        landing_at: 0,
        to_you: 0,
        from_you: 0,
    };
    // Control slots: rank * 31 + operation slot.
    let at = (31 + 29) * HEADER_BYTES;
    net.inject(Rank(1), Rank(0), (at as u64, &stale.encode()), Imm::Header { slot: 29 }.encode());
    std::thread::scope(|scope| {
        for (comm, world) in communicators.into_iter().zip(worlds) {
            scope.spawn(move || {
                let mut buffer = vec![1.0f32; 1000];
                world.all_reduce(&mut buffer).expect("the stale header does not count");
                assert!(buffer.iter().all(|value| *value == 2.0));
                drop(comm);
            });
        }
    });
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("proc").count()
}

fn mappings() -> usize {
    let maps = std::fs::read_to_string("/proc/self/maps").expect("proc");
    maps.lines().filter(|line| line.contains("memfd:lampyris")).count()
}

/// Descriptors and mappings once the rendezvous has let go of the ranks that are connected: the least within a moment.
fn least_held() -> (usize, usize) {
    let until = Instant::now() + Duration::from_millis(500);
    let mut least = (usize::MAX, usize::MAX);
    while Instant::now() < until {
        least = least.min((descriptors(), mappings()));
        std::thread::yield_now();
    }
    least
}

/// Runs alone in its own process (see `processes.rs`): it counts the descriptors of the whole process.
pub(crate) fn hundred_generations() {
    let options = Options { landing_bytes: 1 << 20, ..small() };
    let mut before = (0, 0);
    for round in 0..100 {
        let generation = next_generation();
        // One rank fewer every other time: a kill and its replacement.
        let ranks = 3 - round % 2;
        let all_done = std::sync::Barrier::new(ranks);
        std::thread::scope(|scope| {
            for rank in 0..ranks {
                let (options, all_done) = (options.clone(), &all_done);
                scope.spawn(move || {
                    let per_node = if round % 4 < 2 { ranks } else { 1 };
                    let me = membership(rank, ranks, per_node, generation);
                    let comm = Communicator::connect(&me, options).expect("formed");
                    let mut buffer = vec![1.0f32; 50_000];
                    comm.world().all_reduce(&mut buffer).expect("works");
                    assert!(buffer.iter().all(|value| *value == ranks as f32));
                    all_done.wait();
                    if rank == 0 {
                        comm.abort("next generation");
                    }
                    let _failed = outcome(&comm, 5000);
                });
            }
        });
        if round == 9 {
            before = least_held();
        }
    }
    assert_eq!(before, least_held(), "descriptors and mappings after 10 and after 100 generations");
    // main, this test, the rendezvous.
    only_threads(3);
}

/// A joined thread stays in the list until the kernel has let go of it.
fn only_threads(most: usize) {
    let threads = || std::fs::read_dir("/proc/self/task").expect("proc").count();
    let patience = Instant::now() + Duration::from_secs(10);
    while threads() > most {
        assert!(Instant::now() < patience, "{} threads left", threads());
        std::thread::yield_now();
    }
}

/// What this process has open, by name, without `/proc` itself.
pub(crate) fn open_files() -> BTreeSet<PathBuf> {
    let fds = std::fs::read_dir("/proc/self/fd").expect("proc");
    fds.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok())
        .filter(|link| !link.starts_with("/proc"))
        .collect()
}

/// No mapping, descriptor or thread of a communicator is left in this process, which has none any more.
pub(crate) fn nothing_is_left(open_before: &BTreeSet<PathBuf>) {
    // main, this test.
    only_threads(2);
    assert_eq!(mappings(), 0, "shared memory is still mapped");
    let open = open_files();
    assert!(open.is_subset(open_before), "{open:?}, before {open_before:?}");
}
