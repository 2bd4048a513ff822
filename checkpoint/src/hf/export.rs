//! Writes a model as a Hugging Face folder that `transformers` loads with no key missing and none unexpected.
//!
//! Values are pulled from the caller in blocks, so a model larger than memory can be exported. The folder appears whole
//! or not at all: files are written into a temporary folder beside the target, synced, and renamed once.

use super::import::duplicates;
use super::{CONFIG_FILE, GENERATION_FILE, INDEX_FILE, WEIGHTS_FILE, config};
use crate::disk::{Access, Disk, DiskFile};
use crate::error::{Error, Result};
use crate::read::Reader;
use crate::tensors::Kind;
use lampyris_plan::{Inventory, ModelSpec};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

/// Elements asked for at a time: 4 MiB of fp32.
const BLOCK_ELEMENTS: usize = 1 << 20;

/// Element type of exported matrices. Gate biases are fp32 always (`transformers` keeps them so).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StorageType {
    /// The master weights as they are.
    Fp32,
    /// Rounded to nearest even, the type of published checkpoints.
    #[default]
    Bf16,
}

/// What to write.
#[derive(Debug, Clone)]
pub struct Options {
    /// Element type.
    pub storage: StorageType,
    /// Write the MTP layer, with its copies of embedding and head. `transformers` reports its keys as unexpected.
    pub with_mtp: bool,
    /// Begin another file before one grows past this many bytes.
    pub file_bytes: u64,
    /// Special tokens for `config.json`.
    pub tokens: config::Tokens,
    /// Further files of the folder, e.g. `("tokenizer.json", bytes)`.
    pub extra_files: Vec<(String, Vec<u8>)>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            storage: StorageType::default(),
            with_mtp: false,
            file_bytes: 5_000_000_000,
            tokens: config::Tokens::default(),
            extra_files: Vec::new(),
        }
    }
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Weight files.
    pub files: Vec<String>,
    /// Tensors.
    pub tensors: usize,
    /// Bytes of tensor data.
    pub bytes: u64,
}

/// A tensor to write. `source` differs from `name` for copies.
struct Entry {
    name: String,
    source: String,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl Entry {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn bytes(&self) -> usize {
        self.elements() * self.dtype.bitsize() / 8
    }
}

/// Writes `spec` into the new folder `target`, whose parent must exist. `read(name, first, out)` fills `out` with the
/// elements of Hugging Face tensor `name` from `first` on, row-major.
///
/// # Errors
/// [`Error::Exists`] if there is a `target`, [`Error::NotExportable`] if no class computes this model, failures of `read`
/// and of the disk. Nothing is left behind.
pub fn export(
    disk: &dyn Disk,
    spec: &ModelSpec,
    options: &Options,
    target: &Path,
    mut read: impl FnMut(&str, usize, &mut [f32]) -> Result<()>,
) -> Result<Exported> {
    let mut spec = spec.clone();
    if !options.with_mtp {
        spec.mtp_layers = 0;
    }
    let (parent, name) = split(target)?;
    if disk.list(parent).map_err(|e| Error::io("reading", parent, e))?.contains(&name) {
        return Err(Error::Exists { path: target.to_path_buf() });
    }
    let dtype = match options.storage {
        StorageType::Fp32 => "float32",
        StorageType::Bf16 => "bfloat16",
    };
    let config = config::write(&spec, dtype, &options.tokens)?;
    let temporary = parent.join(format!(".{name}.{}.tmp", std::process::id()));
    disk.create_dir(&temporary).map_err(|e| Error::io("creating", &temporary, e))?;
    let folder = NewFolder { disk, dir: temporary.clone(), written: Vec::new() };
    let done =
        folder.fill(&config, &entries(&spec, options), options, &mut read).and_then(|done| {
            disk.rename_noreplace(&temporary, target).map_err(|e| match e.kind() {
                std::io::ErrorKind::AlreadyExists => Error::Exists { path: target.to_path_buf() },
                _ => Error::io("renaming to", target, e),
            })?;
            disk.sync_dir(parent).map_err(|e| Error::io("syncing", parent, e))?;
            Ok(done)
        });
    if done.is_err() {
        remove_all(disk, &temporary);
    }
    done
}

/// A source for [`export`]: the master weights of a checkpoint.
pub fn from_checkpoint(reader: &Reader) -> impl FnMut(&str, usize, &mut [f32]) -> Result<()> {
    let biases: HashSet<&str> = reader
        .manifest()
        .tensors
        .iter()
        .filter(|tensor| tensor.kinds.contains(&Kind::GateBias))
        .map(|tensor| tensor.name.as_str())
        .collect();
    move |name, first, out| {
        let kind = if biases.contains(name) { Kind::GateBias } else { Kind::Weight };
        reader.read(name, kind, first as u64, out)
    }
}

/// Parent folder and last name of the target.
fn split(target: &Path) -> Result<(&Path, String)> {
    match (target.parent(), target.file_name().and_then(|name| name.to_str())) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok((parent, name.to_string()))
        }
        _ => Err(Error::malformed(target, "it does not name a new folder")),
    }
}

/// All tensors in order of first use; copies right after the layer they belong to.
fn entries(spec: &ModelSpec, options: &Options) -> Vec<Entry> {
    let inventory = Inventory::new(spec);
    let dtype = match options.storage {
        StorageType::Fp32 => Dtype::F32,
        StorageType::Bf16 => Dtype::BF16,
    };
    let mut entries = Vec::new();
    for parameter in &inventory.parameters {
        for part in &parameter.parts {
            let mut shape = parameter.shape.clone();
            shape[0] = part.rows;
            let name = part.hf_name.clone();
            entries.push(Entry { source: name.clone(), name, shape, dtype });
        }
    }
    for buffer in &inventory.buffers {
        let name = buffer.hf_name.clone();
        let shape = buffer.shape.clone();
        entries.push(Entry { source: name.clone(), name, shape, dtype: Dtype::F32 });
    }
    for layer in spec.layers..spec.all_layers() {
        for (name, original) in duplicates(layer) {
            let source = if spec.tie_embeddings { "model.embed_tokens.weight" } else { original };
            let shape = vec![spec.vocab_size, spec.hidden];
            entries.push(Entry { name, source: source.to_string(), shape, dtype });
        }
    }
    entries
}

/// The temporary folder while it is filled.
struct NewFolder<'a> {
    disk: &'a dyn Disk,
    dir: PathBuf,
    written: Vec<String>,
}

type Read<'a> = dyn FnMut(&str, usize, &mut [f32]) -> Result<()> + 'a;

impl NewFolder<'_> {
    fn fill(
        mut self,
        config: &serde_json::Value,
        entries: &[Entry],
        options: &Options,
        read: &mut Read<'_>,
    ) -> Result<Exported> {
        let groups = groups(entries, options.file_bytes);
        let mut weight_map = BTreeMap::new();
        for (index, group) in groups.iter().enumerate() {
            let file = match groups.len() {
                1 => WEIGHTS_FILE.to_string(),
                count => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
            };
            self.write_weights(&file, group, read)?;
            weight_map.extend(group.iter().map(|entry| (entry.name.as_str(), file.clone())));
            self.written.push(file);
        }
        let bytes: u64 = entries.iter().map(|entry| entry.bytes() as u64).sum();
        if groups.len() > 1 {
            let index = json!({ "metadata": { "total_size": bytes }, "weight_map": weight_map });
            self.write_json(INDEX_FILE, &index)?;
        }
        self.write_json(CONFIG_FILE, config)?;
        if let Some(generation) = config::write_generation(&options.tokens) {
            self.write_json(GENERATION_FILE, &generation)?;
        }
        for (name, content) in &options.extra_files {
            self.write(name, content)?;
        }
        self.disk.sync_dir(&self.dir).map_err(|e| Error::io("syncing", &self.dir, e))?;
        Ok(Exported { files: self.written, tensors: entries.len(), bytes })
    }

    fn write_weights(&self, name: &str, group: &[&Entry], read: &mut Read<'_>) -> Result<()> {
        // Wider elements first, so that every tensor is aligned to its element.
        let mut group: Vec<&Entry> = group.to_vec();
        group.sort_by_key(|entry| entry.dtype != Dtype::F32);
        let mut header = header(&group)?;
        header.resize(header.len().next_multiple_of(8), b' ');
        let path = self.dir.join(name);
        let io = |e| Error::io("writing", &path, e);
        let file = self.disk.create(&path, Access::Plain).map_err(io)?;
        file.write_at(0, &(header.len() as u64).to_le_bytes()).map_err(io)?;
        file.write_at(8, &header).map_err(io)?;
        let mut offset = 8 + header.len() as u64;
        for entry in group {
            write_tensor(file.as_ref(), &path, offset, entry, read)?;
            offset += entry.bytes() as u64;
        }
        file.sync().map_err(|e| Error::io("syncing", &path, e))
    }

    fn write_json(&self, name: &str, value: &serde_json::Value) -> Result<()> {
        self.write(name, format!("{value:#}\n").as_bytes())
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.dir.join(name);
        let io = |e| Error::io("writing", &path, e);
        let file = self.disk.create(&path, Access::Plain).map_err(io)?;
        file.write_at(0, content).map_err(io)?;
        file.sync().map_err(|e| Error::io("syncing", &path, e))
    }
}

/// Consecutive tensors per file.
fn groups(entries: &[Entry], file_bytes: u64) -> Vec<Vec<&Entry>> {
    let mut groups: Vec<Vec<&Entry>> = vec![Vec::new()];
    let mut filled = 0;
    for entry in entries {
        let bytes = entry.bytes() as u64;
        if filled > 0 && filled + bytes > file_bytes {
            groups.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        groups.last_mut().expect("there is always one").push(entry);
    }
    groups
}

fn header(group: &[&Entry]) -> Result<Vec<u8>> {
    let mut end = 0;
    let tensors = group
        .iter()
        .map(|entry| {
            let start = end;
            end += entry.bytes();
            let info = TensorInfo {
                dtype: entry.dtype,
                shape: entry.shape.clone(),
                data_offsets: (start, end),
            };
            (entry.name.clone(), info)
        })
        .collect();
    // Without this line transformers refuses the file.
    let about = HashMap::from([("format".to_string(), "pt".to_string())]);
    let broken = |e: &dyn std::fmt::Display| Error::NotExportable { reason: e.to_string() };
    let metadata = Metadata::new(Some(about), tensors).map_err(|e| broken(&e))?;
    serde_json::to_vec(&metadata).map_err(|e| broken(&e))
}

fn write_tensor(
    file: &dyn DiskFile,
    path: &Path,
    mut offset: u64,
    entry: &Entry,
    read: &mut Read<'_>,
) -> Result<()> {
    let mut values = vec![0.0; BLOCK_ELEMENTS.min(entry.elements())];
    let mut bytes = Vec::with_capacity(values.len() * 4);
    let mut first = 0;
    while first < entry.elements() {
        let count = BLOCK_ELEMENTS.min(entry.elements() - first);
        let block = &mut values[..count];
        read(&entry.source, first, block)?;
        bytes.clear();
        match entry.dtype {
            Dtype::BF16 => {
                bytes.extend(block.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()));
            }
            _ => bytes.extend(block.iter().flat_map(|v| v.to_le_bytes())),
        }
        file.write_at(offset, &bytes).map_err(|e| Error::io("writing", path, e))?;
        offset += bytes.len() as u64;
        first += count;
    }
    Ok(())
}

/// Removes a flat folder as far as possible: the error that led here matters more than what stays.
fn remove_all(disk: &dyn Disk, dir: &Path) {
    for name in disk.list(dir).unwrap_or_default() {
        disk.remove_file(&dir.join(name)).ok();
    }
    disk.remove_dir(dir).ok();
}
