//! A Hugging Face folder opened for reading: one `model.safetensors`, or several files behind an index.
//!
//! Only headers are read on opening. Values are read with `pread` where they lie, in pieces, and turned into `f32`, so a
//! folder larger than memory costs no more than what is asked for.

use super::{CONFIG_FILE, INDEX_FILE, WEIGHTS_FILE, config};
use crate::disk::regular;
use crate::error::{Error, Result};
use lampyris_plan::ModelSpec;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of storage converted at a time.
const BLOCK_BYTES: usize = 1 << 20;
/// Largest `config.json` or index: that of a model of 100,000 tensors has 10 MB.
const MAX_TEXT_BYTES: u64 = 256 << 20;
/// The limit of the safetensors format itself.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// One safetensors file: its header, and where its data begins.
#[derive(Debug)]
pub(super) struct Weights {
    path: PathBuf,
    file: File,
    header: Metadata,
    data_start: u64,
}

/// A folder with `config.json` and weights.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    spec: ModelSpec,
    files: Vec<Weights>,
    /// File of each tensor.
    tensors: BTreeMap<String, usize>,
}

impl Folder {
    /// Opens `dir` and checks that every file is whole; says nothing yet about missing tensors (see [`super::Import`]).
    ///
    /// # Errors
    /// A configuration of another class, a truncated or malformed file, an index that names an absent file or tensor.
    pub fn open(dir: &Path) -> Result<Folder> {
        let config_path = dir.join(CONFIG_FILE);
        let spec = config::parse(&read_text(&config_path)?, &config_path)?;
        let index_path = dir.join(INDEX_FILE);
        let mut folder =
            Folder { dir: dir.to_path_buf(), spec, files: Vec::new(), tensors: BTreeMap::new() };
        if index_path.exists() && !dir.join(WEIGHTS_FILE).exists() {
            let map = read_index(&index_path)?;
            for name in map.values().collect::<BTreeSet<_>>() {
                folder.add(Weights::open(&dir.join(name))?)?;
            }
            let absent: Vec<String> =
                map.into_keys().filter(|name| !folder.tensors.contains_key(name)).collect();
            if !absent.is_empty() {
                let problem = format!("{INDEX_FILE} lists tensors that its files do not hold");
                return Err(Error::Tensors { dir: dir.to_path_buf(), problem, names: absent });
            }
        } else if dir.join(WEIGHTS_FILE).exists() {
            folder.add(Weights::open(&dir.join(WEIGHTS_FILE))?)?;
        } else {
            return Err(Error::malformed(dir, weights_problem(dir)));
        }
        Ok(folder)
    }

    fn add(&mut self, weights: Weights) -> Result<()> {
        let id = self.files.len();
        for name in weights.header.tensors().into_keys() {
            if let Some(first) = self.tensors.insert(name.clone(), id) {
                let problem =
                    format!("tensor {name} is in {} too", self.files[first].path.display());
                return Err(Error::malformed(&weights.path, problem));
            }
        }
        self.files.push(weights);
        Ok(())
    }

    /// Tensors of all files.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// Whether no file holds a tensor.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The sizes that `config.json` declares.
    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Shape of a tensor, none if the folder does not hold it.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let file = &self.files[*self.tensors.get(name)?];
        file.header.info(name).map(|info| info.shape.as_slice())
    }

    /// A whole tensor, row-major, as `f32`.
    ///
    /// # Errors
    /// An absent tensor, storage other than f32, bf16 or f16, or a failure to read.
    pub fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let shape = self.weights(name)?.info(name)?.shape.clone();
        let mut values = vec![0.0; shape.iter().product()];
        self.read_into(name, 0, &mut values)?;
        Ok((shape, values))
    }

    /// Fills `out` with the elements of a tensor from element `first` on, row-major, as `f32`.
    ///
    /// # Errors
    /// As [`Folder::tensor`], and a range that leaves the tensor.
    pub fn read_into(&self, name: &str, first: usize, out: &mut [f32]) -> Result<()> {
        self.weights(name)?.read_f32(name, first, out)
    }

    fn weights(&self, name: &str) -> Result<&Weights> {
        self.tensors.get(name).map(|&id| &self.files[id]).ok_or_else(|| Error::Tensors {
            dir: self.dir.clone(),
            problem: "missing tensor".to_string(),
            names: vec![name.to_string()],
        })
    }
}

impl Weights {
    pub(super) fn open(path: &Path) -> Result<Weights> {
        let io = |e| Error::io("reading", path, e);
        let file = regular::open_linked(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        let mut size = [0; 8];
        file.read_exact_at(&mut size, 0)
            .map_err(|_| Error::malformed(path, "not a safetensors file: shorter than 8 bytes"))?;
        let header_bytes = u64::from_le_bytes(size);
        if header_bytes > MAX_HEADER_BYTES || header_bytes + 8 > length {
            let problem = format!("truncated: its header needs {header_bytes} bytes");
            return Err(Error::malformed(path, problem));
        }
        let mut header = vec![0; header_bytes as usize];
        file.read_exact_at(&mut header, 8).map_err(io)?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|e| Error::malformed(path, format!("bad safetensors header: {e}")))?;
        let data_start = 8 + header_bytes;
        let wanted = data_start.saturating_add(header.data_len() as u64);
        if wanted != length {
            let problem = format!("it has {length} bytes, its header describes {wanted}");
            return Err(Error::malformed(path, problem));
        }
        Ok(Weights { path: path.to_path_buf(), file, header, data_start })
    }

    pub(super) fn header(&self) -> &Metadata {
        &self.header
    }

    pub(super) fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header
            .info(name)
            .ok_or_else(|| Error::malformed(&self.path, format!("it holds no tensor {name}")))
    }

    pub(super) fn read_f32(&self, name: &str, first: usize, out: &mut [f32]) -> Result<()> {
        let info = self.info(name)?;
        let elements: usize = info.shape.iter().product();
        if first + out.len() > elements {
            let problem = format!(
                "elements {first}..{} of {name} asked for, which has {elements}",
                first + out.len()
            );
            return Err(Error::malformed(&self.path, problem));
        }
        let convert: fn(&[u8], &mut [f32]) = match info.dtype {
            Dtype::F32 => |bytes, out| {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *value = f32::from_le_bytes(*bytes);
                }
            },
            Dtype::BF16 => |bytes, out| {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = half::bf16::from_le_bytes(*bytes).to_f32();
                }
            },
            Dtype::F16 => |bytes, out| {
                for (value, bytes) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *value = half::f16::from_le_bytes(*bytes).to_f32();
                }
            },
            other => {
                let problem = format!("{name} is stored as {other}; f32, bf16 and f16 can be read");
                return Err(Error::malformed(&self.path, problem));
            }
        };
        let width = info.dtype.bitsize() / 8;
        let mut offset = (info.data_offsets.0 + first * width) as u64;
        let mut block = vec![0; BLOCK_BYTES.min(out.len() * width)];
        for part in out.chunks_mut(BLOCK_BYTES / width) {
            let bytes = &mut block[..part.len() * width];
            self.read_raw(offset, bytes)?;
            convert(bytes, part);
            offset += bytes.len() as u64;
        }
        Ok(())
    }

    /// Fills `out` from byte `offset` of the data.
    pub(super) fn read_raw(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.file
            .read_exact_at(out, self.data_start + offset)
            .map_err(|e| Error::io("reading", &self.path, e))
    }
}

/// Tensor name to file name.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let value: Value = serde_json::from_str(&read_text(path)?)
        .map_err(|e| Error::malformed(path, format!("not a JSON file: {e}")))?;
    let Some(map) = value.get("weight_map").and_then(Value::as_object) else {
        return Err(Error::malformed(path, "it has no object weight_map"));
    };
    map.iter()
        .map(|(name, file)| match file.as_str() {
            // A file beside the index, not a path that leads elsewhere.
            Some(file) if !file.contains('/') => Ok((name.clone(), file.to_string())),
            _ => Err(Error::malformed(path, format!("weight_map.{name} is not a file name"))),
        })
        .collect()
}

fn read_text(path: &Path) -> Result<String> {
    regular::read_linked_text(path, MAX_TEXT_BYTES).map_err(|e| Error::io("reading", path, e))
}

/// What is wrong with a folder that has no safetensors file of the expected name.
fn weights_problem(dir: &Path) -> String {
    let names = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    let ends = |endings: &[&str]| {
        names.iter().find(|name| endings.iter().any(|ending| name.ends_with(ending)))
    };
    let none = format!("it holds neither {WEIGHTS_FILE} nor {INDEX_FILE}");
    if let Some(name) = ends(&[".bin", ".pt", ".pth", ".ckpt"]) {
        let dir = dir.display();
        return format!(
            "{none}; {name} is a PyTorch pickle, which is not read, because reading it can run any program. Convert \
             it where you trust it: python3 -c 'import transformers; \
             transformers.AutoModelForCausalLM.from_pretrained(\"{dir}\").save_pretrained(\"{dir}-safetensors\")'"
        );
    }
    if let Some(name) = ends(&[".gguf", ".ggml"]) {
        return format!("{none}; {name} is of llama.cpp: take the safetensors it was made from");
    }
    match ends(&[".safetensors"]) {
        Some(name) => format!("{none}; if {name} holds the whole model, name it {WEIGHTS_FILE}"),
        None => format!("{none}: the weights are missing; download them completely"),
    }
}
