//! A disk in memory that records every operation, and builds from any prefix of the record the states that a power cut
//! may leave.
//!
//! Safe is only what was synced: bytes of a file by a sync of the file, names in a folder by a sync of the folder. Of the
//! rest any part may survive: a write whole, torn, or as a longer file full of zeros; a name without its contents; a
//! later rename without an earlier creation.

use super::fixture::Random;
use lampyris_checkpoint::disk::{ALIGN_BYTES, Access, Disk, DiskFile};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

type Node = usize;
const ROOT: Node = 0;

/// One recorded operation.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Write {
        node: Node,
        offset: u64,
        data: Vec<u8>,
    },
    SyncFile {
        node: Node,
        path: PathBuf,
    },
    /// A change of one folder's names.
    Name {
        folder: Node,
        change: Change,
    },
    SyncFolder {
        folder: Node,
        path: PathBuf,
    },
}

impl Op {
    /// The path of a sync.
    pub(crate) fn synced(&self) -> Option<&Path> {
        match self {
            Op::SyncFile { path, .. } | Op::SyncFolder { path, .. } => Some(path),
            _ => None,
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Change {
    Add { name: String, node: Node, is_folder: bool },
    Rename { from: String, to: String, node: Node },
    Remove { name: String },
}

#[derive(Clone, Debug, PartialEq)]
enum Content {
    File(Vec<u8>),
    Folder(BTreeMap<String, Node>),
}

/// Files and folders by node.
#[derive(Clone, Debug)]
struct Tree(Vec<Content>);

impl Tree {
    fn new() -> Tree {
        Tree(vec![Content::Folder(BTreeMap::new())])
    }

    fn folder(&mut self, node: Node) -> &mut BTreeMap<String, Node> {
        match &mut self.0[node] {
            Content::Folder(names) => names,
            Content::File(_) => panic!("not a folder"),
        }
    }

    fn file(&mut self, node: Node) -> &mut Vec<u8> {
        match &mut self.0[node] {
            Content::File(bytes) => bytes,
            Content::Folder(_) => panic!("not a file"),
        }
    }

    fn find(&self, path: &Path) -> io::Result<Node> {
        let mut node = ROOT;
        for part in path.strip_prefix("/").unwrap() {
            let Content::Folder(names) = &self.0[node] else {
                return Err(io::ErrorKind::NotADirectory.into());
            };
            node = *names.get(part.to_str().unwrap()).ok_or(io::ErrorKind::NotFound)?;
        }
        Ok(node)
    }

    fn change(&mut self, folder: Node, change: &Change) {
        let names = self.folder(folder);
        match change {
            Change::Add { name, node, .. } => {
                names.insert(name.clone(), *node);
            }
            Change::Rename { from, to, node } => {
                names.retain(|name, held| name != from || held != node);
                names.insert(to.clone(), *node);
            }
            Change::Remove { name } => {
                names.remove(name);
            }
        }
    }

    fn write(&mut self, node: Node, offset: u64, data: &[u8]) {
        let bytes = self.file(node);
        let end = offset as usize + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(data);
    }
}

#[derive(Debug)]
struct State {
    tree: Tree,
    log: Vec<Op>,
}

/// The disk.
#[derive(Clone, Debug)]
pub(crate) struct CrashDisk(Arc<Mutex<State>>);

impl CrashDisk {
    pub(crate) fn new() -> CrashDisk {
        CrashDisk::with(Tree::new())
    }

    fn with(tree: Tree) -> CrashDisk {
        CrashDisk(Arc::new(Mutex::new(State { tree, log: Vec::new() })))
    }

    /// Another disk with the same content and an empty record.
    pub(crate) fn copy(&self) -> CrashDisk {
        CrashDisk::with(self.0.lock().unwrap().tree.clone())
    }

    /// Operations so far.
    pub(crate) fn position(&self) -> usize {
        self.0.lock().unwrap().log.len()
    }

    pub(crate) fn log(&self) -> Vec<Op> {
        self.0.lock().unwrap().log.clone()
    }

    fn alter<T>(&self, alter: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        alter(&mut self.0.lock().unwrap())
    }

    fn add(&self, path: &Path, content: Content) -> io::Result<Node> {
        self.alter(|state| {
            let folder = state.tree.find(path.parent().unwrap())?;
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            if state.tree.folder(folder).contains_key(&name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let node = state.tree.0.len();
            let is_folder = matches!(content, Content::Folder(_));
            state.tree.0.push(content);
            state.name(folder, Change::Add { name, node, is_folder });
            Ok(node)
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.alter(|state| {
            let node = state.tree.find(path)?;
            if matches!(&state.tree.0[node], Content::Folder(names) if !names.is_empty()) {
                return Err(io::ErrorKind::DirectoryNotEmpty.into());
            }
            let folder = state.tree.find(path.parent().unwrap())?;
            let name = path.file_name().unwrap().to_str().unwrap().to_string();
            state.name(folder, Change::Remove { name });
            Ok(())
        })
    }

    fn handle(&self, node: Node, path: &Path, access: Access) -> Box<dyn DiskFile> {
        Box::new(Handle { disk: self.clone(), node, path: path.to_path_buf(), access })
    }
}

impl State {
    fn name(&mut self, folder: Node, change: Change) {
        self.tree.change(folder, &change);
        self.log.push(Op::Name { folder, change });
    }
}

impl Disk for CrashDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.add(path, Content::Folder(BTreeMap::new())).map(drop)
    }

    fn create(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let node = self.add(path, Content::File(Vec::new()))?;
        Ok(self.handle(node, path, access))
    }

    fn open(&self, path: &Path, access: Access) -> io::Result<Box<dyn DiskFile>> {
        let node = self.alter(|state| state.tree.find(path))?;
        Ok(self.handle(node, path, access))
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open(path, Access::Plain)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.alter(|state| {
            let folder = state.tree.find(path)?;
            state.log.push(Op::SyncFolder { folder, path: path.to_path_buf() });
            Ok(())
        })
    }

    fn rename_noreplace(&self, from: &Path, to: &Path) -> io::Result<()> {
        assert_eq!(from.parent(), to.parent(), "renames stay in their folder");
        self.alter(|state| {
            let node = state.tree.find(from)?;
            if state.tree.find(to).is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let folder = state.tree.find(from.parent().unwrap())?;
            let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
            state.name(folder, Change::Rename { from: name(from), to: name(to), node });
            Ok(())
        })
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        self.alter(|state| {
            let node = state.tree.find(path)?;
            match &state.tree.0[node] {
                Content::Folder(names) => Ok(names.keys().cloned().collect()),
                Content::File(_) => Err(io::ErrorKind::NotADirectory.into()),
            }
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.remove(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.remove(path)
    }
}

struct Handle {
    disk: CrashDisk,
    node: Node,
    path: PathBuf,
    access: Access,
}

impl Handle {
    fn check(&self, offset: u64, data: &[u8]) {
        let aligned = |number: usize| number.is_multiple_of(ALIGN_BYTES);
        if self.access == Access::Bulk {
            assert!(aligned(offset as usize) && aligned(data.len()), "{offset} {}", data.len());
            assert!(aligned(data.as_ptr() as usize), "the buffer is not aligned");
        }
    }
}

impl DiskFile for Handle {
    fn length(&self) -> io::Result<u64> {
        self.disk.alter(|state| Ok(state.tree.file(self.node).len() as u64))
    }

    fn reserve(&self, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check(offset, out);
        self.disk.alter(|state| {
            let range = offset as usize..offset as usize + out.len();
            let bytes = state.tree.file(self.node).get(range);
            out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check(offset, data);
        self.disk.alter(|state| {
            state.tree.write(self.node, offset, data);
            state.log.push(Op::Write { node: self.node, offset, data: data.to_vec() });
            Ok(())
        })
    }

    fn append(&self, data: &[u8]) -> io::Result<()> {
        self.write_at(self.length()?, data)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.alter(|state| {
            state.log.push(Op::SyncFile { node: self.node, path: self.path.clone() });
            Ok(())
        })
    }
}

/// What is safe after a prefix of the log, and what is not yet.
pub(crate) struct Cut {
    safe: Tree,
    /// Unsynced writes and name changes, in order.
    loose: Vec<Op>,
}

impl Cut {
    pub(crate) fn new() -> Cut {
        Cut { safe: Tree::new(), loose: Vec::new() }
    }

    /// Goes one operation further.
    pub(crate) fn step(&mut self, op: &Op) {
        match op {
            Op::Name { change: Change::Add { node, is_folder, .. }, .. } => {
                assert_eq!(*node, self.safe.0.len());
                self.safe.0.push(match is_folder {
                    true => Content::Folder(BTreeMap::new()),
                    false => Content::File(Vec::new()),
                });
                self.loose.push(op.clone());
            }
            Op::Write { .. } | Op::Name { .. } => self.loose.push(op.clone()),
            Op::SyncFile { node: synced, .. } => {
                self.settle(|op| matches!(op, Op::Write { node, .. } if node == synced))
            }
            Op::SyncFolder { folder: synced, .. } => {
                self.settle(|op| matches!(op, Op::Name { folder, .. } if folder == synced))
            }
        }
    }

    fn settle(&mut self, safe_now: impl Fn(&Op) -> bool) {
        let (now, loose) = std::mem::take(&mut self.loose).into_iter().partition(|op| safe_now(op));
        self.loose = loose;
        let now: Vec<Op> = now;
        for op in now {
            apply(&mut self.safe, &op);
        }
    }

    /// The states a power cut may leave here: all lost, all kept, names without contents, each name change alone, and
    /// `random` mixtures with torn writes.
    pub(crate) fn states(&self, seed: u64, random: usize) -> Vec<CrashDisk> {
        let mut states = vec![self.state(|_| Fate::Lost), self.state(|_| Fate::Kept)];
        if self.loose.is_empty() {
            return states[..1].to_vec();
        }
        states.push(self.state(|(_, op)| match op {
            Op::Name { .. } => Fate::Kept,
            _ => Fate::Lost,
        }));
        let names = self.loose.iter().filter(|op| matches!(op, Op::Name { .. })).count();
        for only in (0..self.loose.len()).filter(|_| names > 1) {
            if matches!(self.loose[only], Op::Name { .. }) {
                states.push(self.state(|(at, _)| if at == only { Fate::Kept } else { Fate::Lost }));
            }
        }
        let mut dice = Random(seed);
        for _ in 0..random {
            states.push(self.state(|_| match dice.below(4) {
                0 => Fate::Lost,
                1 => Fate::Torn(dice.next()),
                _ => Fate::Kept,
            }));
        }
        states
    }

    fn state(&self, mut fate: impl FnMut((usize, &Op)) -> Fate) -> CrashDisk {
        let mut tree = self.safe.clone();
        for (at, op) in self.loose.iter().enumerate() {
            match (fate((at, op)), op) {
                (Fate::Lost, _) => {}
                (Fate::Torn(dice), Op::Write { node, offset, data }) => {
                    let mut torn = data.clone();
                    let from = dice as usize % (torn.len() + 1);
                    match dice >> 60 {
                        // The file grew, its blocks were never written.
                        0..5 => torn.fill(0),
                        // Only a beginning arrived.
                        5..11 => torn.truncate(from),
                        // Everything but a sector arrived.
                        _ => torn[from..].iter_mut().take(512).for_each(|byte| *byte = 0),
                    }
                    tree.write(*node, *offset, &torn);
                }
                (_, op) => apply(&mut tree, op),
            }
        }
        CrashDisk::with(tree)
    }
}

enum Fate {
    Lost,
    Kept,
    /// With dice; a change of names cannot be torn and is kept.
    Torn(u64),
}

fn apply(tree: &mut Tree, op: &Op) {
    match op {
        Op::Write { node, offset, data } => tree.write(*node, *offset, data),
        Op::Name { folder, change } => tree.change(*folder, change),
        Op::SyncFile { .. } | Op::SyncFolder { .. } => {}
    }
}
