//! Snapshots in the memory of nodes: whichever node is lost, the others restore what is newer than the disk; what is not
//! whole is passed over.

use super::fixture::{self, Layout, SMALL, id, new_run, open, save};
use super::ranks::{ranks, together};
use super::saver::snapshot;
use lampyris_checkpoint::disk::RealDisk;
use lampyris_checkpoint::{
    Busy, HostMemory, Neighbour, Ranks, Replica, Restored, Run, Saved, Saver, Shift, Snapshot,
    Target,
};
use lampyris_plan::{Attempt, Rank};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

const NODES: usize = 3;

/// A run of three nodes of one rank each, and their memories, which are folders of one host.
struct Cluster {
    _dir: TempDir,
    run: Run,
    _memory: TempDir,
    memory: HostMemory,
    layout: Layout,
}

fn shifts() -> Vec<Shift> {
    let (mut senders, mut receivers) = (Vec::new(), Vec::new());
    for _ in 0..NODES {
        let (sender, receiver) = sync_channel::<Vec<u8>>(1);
        senders.push(sender);
        receivers.push(receiver);
    }
    let one = |(rank, receiver): (usize, Receiver<Vec<u8>>)| -> Shift {
        let (next, receiver) = (senders[(rank + 1) % NODES].clone(), Mutex::new(receiver));
        Box::new(move |send, receive| {
            if !send.is_empty() {
                next.send(send.to_vec())?;
            }
            if !receive.is_empty() {
                receive.copy_from_slice(&receiver.lock().unwrap().recv()?);
            }
            Ok(())
        })
    };
    receivers.into_iter().enumerate().map(one).collect()
}

impl Cluster {
    fn new() -> Cluster {
        let (dir, run) = new_run();
        let memory_dir = tempfile::tempdir().unwrap();
        let memory = HostMemory::of_run(Arc::new(RealDisk), memory_dir.path(), run.dir());
        Cluster { _dir: dir, run, _memory: memory_dir, memory, layout: Layout::random(8, NODES) }
    }

    fn savers(&self) -> Vec<Saver> {
        let own = ranks(NODES).into_iter().zip(shifts()).enumerate();
        own.map(|(node, (own, shift))| {
            let rank = Rank(((node + NODES - 1) % NODES) as u64);
            let neighbour = Some(Neighbour { rank, shift });
            Saver::new(self.run.clone(), own, SMALL, None).with_replica(Replica::new(
                self.memory.clone(),
                node,
                neighbour,
            ))
        })
        .collect()
    }

    /// All ranks save step `step` of attempt 1.
    fn save(&self, savers: &mut [Saver], step: u64, to: Target) -> Vec<Saved> {
        for (rank, saver) in savers.iter_mut().enumerate() {
            let buffers = saver.buffers(Busy::Wait).0.unwrap();
            saver.begin(Snapshot { to, ..snapshot(id(step, 1), buffers, &self.layout, rank) });
        }
        savers.iter_mut().map(|saver| saver.wait().unwrap().unwrap()).collect()
    }

    /// The shard of `rank` of step `step` on node `node`.
    fn shard(&self, node: usize, rank: usize, step: u64) -> PathBuf {
        self.memory.dir().join(format!("node-{node}/rank-{rank}/{}", id(step, 1)))
    }

    fn lose(&self, node: usize) {
        std::fs::remove_dir_all(self.memory.dir().join(format!("node-{node}"))).unwrap();
    }

    /// What attempt 2, of `world` ranks, restores.
    fn restore(&self, world: usize) -> Restored {
        let attempt = self.run.claim_next().unwrap();
        let restore = |_, own: &mut Ranks| self.run.restore(own, attempt, &self.memory).unwrap();
        let all = together(ranks(world), restore).1;
        assert!(all.iter().all(|restored| restored.id == all[0].id));
        assert!(self.leftovers().is_empty(), "{:?}", self.leftovers());
        all.into_iter().next().unwrap()
    }

    fn leftovers(&self) -> Vec<String> {
        let names = self.run.disk().list(&self.run.checkpoints_dir()).unwrap();
        names.into_iter().filter(|name| name.starts_with('.')).collect()
    }

    fn newest(&self) -> u64 {
        let loaded = self.run.load_latest(&mut Ranks::alone(), |reader| fixture::check(reader, 2));
        loaded.unwrap().found.unwrap().0.step.0
    }
}

#[test]
fn whichever_node_is_lost_memory_restores_what_is_newer_than_the_disk() {
    for lost in 0..NODES {
        let cluster = Cluster::new();
        let mut savers = cluster.savers();
        cluster.save(&mut savers, 4, Target::Disk);
        for step in [5, 6] {
            let saved = cluster.save(&mut savers, step, Target::Memory);
            assert!(saved.iter().all(|saved| saved.replica_problem.is_none()), "{saved:?}");
        }
        assert_eq!(cluster.run.committed().unwrap(), [id(4, 1)]);
        assert!(!cluster.shard(0, 0, 5).exists(), "the older one is forgotten");
        drop(savers);
        cluster.lose(lost);
        // Any number of ranks restore it, and load it as they like.
        let restored = cluster.restore(1 + lost);
        assert_eq!((restored.id, restored.problems), (Some(id(6, 1)), vec![]), "node {lost}");
        assert_eq!(cluster.newest(), 6);
        let manifest = open(&cluster.run, id(6, 1)).unwrap().manifest().clone();
        assert_eq!((manifest.world, manifest.shards.len(), manifest.parent), (3, 3, None));
        let names = cluster.run.disk().list(&cluster.run.path(id(6, 1))).unwrap();
        assert_eq!(names.len(), 2 * NODES + 1, "{names:?}");
        // Attempt 2 goes on from it, and nothing is restored twice.
        cluster.run.record(Attempt(2), Some(id(6, 1))).unwrap();
        assert_eq!(cluster.restore(2).id, None);
        cluster.memory.clear();
        assert!(!cluster.memory.dir().exists());
    }
}

#[test]
fn what_memory_does_not_hold_whole_is_passed_over() {
    let flip = |path: &Path| {
        let mut bytes = std::fs::read(path).unwrap();
        bytes[100] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    // Two neighbours are lost, or the only other copy is damaged: the disk's checkpoint is used.
    for damage in [false, true] {
        let cluster = Cluster::new();
        let mut savers = cluster.savers();
        cluster.save(&mut savers, 4, Target::Disk);
        cluster.save(&mut savers, 6, Target::Memory);
        cluster.lose(1);
        match damage {
            true => flip(&cluster.shard(2, 1, 6).join("rank-00001.data")),
            false => cluster.lose(2),
        }
        let restored = cluster.restore(2);
        assert_eq!(restored.id, None);
        let problems = restored.problems.join("\n");
        assert!(problems.contains("no node holds a good shard of rank 1"), "{problems}");
        assert_eq!(problems.contains("rank-00001.data: chunk 0"), damage, "{problems}");
        assert_eq!(cluster.newest(), 4);
    }
    // A snapshot that was not passed on everywhere leaves the one before.
    let cluster = Cluster::new();
    let mut savers = cluster.savers();
    cluster.save(&mut savers, 4, Target::Disk);
    cluster.save(&mut savers, 6, Target::Memory);
    let (old, new) = (cluster.shard(1, 1, 6), cluster.shard(1, 1, 7));
    std::fs::create_dir(&new).unwrap();
    for file in std::fs::read_dir(&old).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), new.join(file.file_name())).unwrap();
    }
    let manifest = std::fs::read_to_string(new.join("manifest.json")).unwrap();
    let body = manifest.split_once(r#""body":"#).unwrap().1.strip_suffix('}').unwrap();
    let body = body.replace(r#""step":6"#, r#""step":7"#);
    let seal = lampyris_checkpoint::format::Checksum::of(body.as_bytes());
    let manifest = format!(r#"{{"xxh3":"{seal}","body":{body}}}"#);
    std::fs::write(new.join("manifest.json"), manifest).unwrap();
    let restored = cluster.restore(3);
    assert_eq!(restored.id, Some(id(6, 1)));
    assert_eq!(restored.problems.len(), 1, "{:?}", restored.problems);
    assert_eq!(cluster.newest(), 6);
}

#[test]
fn a_memory_that_is_full_is_told_and_the_checkpoint_is_safe() {
    let cluster = Cluster::new();
    let mut savers = cluster.savers();
    // As if a file stood where the folder of node 1 should be: it can keep nothing, all others can.
    std::fs::create_dir_all(cluster.memory.dir()).unwrap();
    std::fs::write(cluster.memory.dir().join("node-1"), "").unwrap();
    let saved = cluster.save(&mut savers, 4, Target::Disk);
    for saved in &saved {
        let problem = saved.replica_problem.as_deref().unwrap();
        assert!(problem.contains("rank 1") && problem.contains("node-1"), "{problem}");
    }
    assert!(!cluster.shard(0, 0, 4).exists(), "what not all hold is held by none");
    assert_eq!(cluster.newest(), 4);
    std::fs::remove_file(cluster.memory.dir().join("node-1")).unwrap();
    let saved = cluster.save(&mut savers, 5, Target::Memory);
    assert!(saved.iter().all(|saved| saved.replica_problem.is_none()), "{saved:?}");
}

#[test]
fn another_attempt_or_an_older_step_is_never_restored() {
    let cluster = Cluster::new();
    let mut savers = cluster.savers();
    cluster.save(&mut savers, 6, Target::Memory);
    drop(savers);
    // Attempt 2 began elsewhere, from nothing, and has gone further on disk.
    assert_eq!(cluster.run.claim_next().unwrap(), Attempt(2));
    cluster.run.record(Attempt(2), None).unwrap();
    save(&cluster.run, id(3, 2), &cluster.layout).unwrap();
    let restored = cluster.restore(3);
    assert_eq!((restored.id, restored.problems), (None, vec![]));
    assert_eq!(cluster.newest(), 3);
}
