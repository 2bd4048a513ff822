//! Worlds of ranks as threads of this process, over any transport. Also part of `hfreduce`'s tests.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use lampyris_comm::{
    Attempt, Communicator, Generation, Membership, Node, Options, Rank, Secret, Server,
};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How the ranks of a test are connected.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Net {
    /// The fake transport with this seed.
    Fake(u64),
    /// The fake transport with this seed, this many ranks per node.
    FakeNodes(u64, usize),
    /// Shared memory: all ranks on one node.
    Shm,
    /// Tcp over loopback: every rank its own node.
    Tcp,
    /// This many ranks per node, tcp between nodes.
    Nodes(usize),
}

/// Options that make small tests cross all the boundaries.
pub(crate) fn small() -> Options {
    Options {
        connect_timeout: Duration::from_secs(20),
        operation_timeout: Duration::from_secs(30),
        spin: Duration::ZERO,
        ..Options::default()
    }
}

/// Runs `rank_main` on every rank, each on its own thread, and returns what they return.
pub(crate) fn run<R: Send>(
    net: Net,
    ranks: usize,
    options: &Options,
    rank_main: impl Fn(Communicator) -> R + Sync,
) -> Vec<R> {
    let communicators = match net {
        Net::Fake(seed) => Communicator::fakes(ranks, ranks, seed, options).expect("fakes").0,
        Net::FakeNodes(seed, per_node) => {
            Communicator::fakes(ranks, per_node, seed, options).expect("fakes").0
        }
        Net::Shm => connect(ranks, ranks, options),
        Net::Tcp => connect(ranks, 1, options),
        Net::Nodes(per_node) => connect(ranks, per_node, options),
    };
    std::thread::scope(|scope| {
        let start = |communicator| scope.spawn(|| rank_main(communicator));
        let threads: Vec<_> = communicators.into_iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().expect("rank")).collect()
    })
}

/// One rendezvous for all worlds of this process: every world is a generation of attempt 1.
pub(crate) fn rendezvous() -> &'static (Server, Secret) {
    static SERVER: OnceLock<(Server, Secret)> = OnceLock::new();
    SERVER.get_or_init(|| {
        let secret = Secret::random().expect("randomness");
        let any = "127.0.0.1:0".parse().expect("an address");
        let timeout = Duration::from_secs(20);
        (Server::start(any, secret.clone(), Attempt(1), timeout).expect("server"), secret)
    })
}

/// A generation that no other world of this process uses.
pub(crate) fn next_generation() -> Generation {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    Generation(NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Membership of a rank in a world of this process.
pub(crate) fn membership(
    rank: usize,
    ranks: usize,
    per_node: usize,
    generation: Generation,
) -> Membership {
    let (server, secret) = rendezvous();
    Membership {
        rank: Rank(rank as u32),
        ranks,
        node: Node((rank / per_node) as u32),
        attempt: Attempt(1),
        generation,
        rendezvous: server.address(),
        address: None,
        secret: secret.clone(),
    }
}

fn connect(ranks: usize, per_node: usize, options: &Options) -> Vec<Communicator> {
    let generation = next_generation();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..ranks)
            .map(|rank| {
                let me = membership(rank, ranks, per_node, generation);
                scope.spawn(move || Communicator::connect(&me, options.clone()).expect("connect"))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("rank")).collect()
    })
}

/// A small generator, so that every rank can make every other rank's data.
pub(crate) fn noise(seed: u64, rank: usize, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (rank as u64 + 1) << 32 | 1;
    (0..len)
        .map(|_| {
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            let bits = state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
            (bits as f32 / (1 << 23) as f32 - 1.0) * 4.0
        })
        .collect()
}
