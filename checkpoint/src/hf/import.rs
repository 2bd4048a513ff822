//! Matches the tensors of a folder with the parameters of a model.

use super::Folder;
use crate::error::{Error, Result};
use lampyris_plan::inventory::{Buffer, Parameter};
use lampyris_plan::{Inventory, ModelSpec};
use std::collections::BTreeMap;

/// A folder whose tensors are known to fill a model completely.
#[derive(Debug)]
pub struct Import {
    /// Sizes; without MTP layers where the folder declares them but holds none of their tensors.
    pub spec: ModelSpec,
    /// Parameters and buffers of `spec`.
    pub inventory: Inventory,
    /// The folder declares an MTP layer and holds no tensor of it: it is left out.
    pub mtp_left_out: bool,
    /// Tensors that nothing asks for, sorted. Worth a report; not an error.
    pub unexpected: Vec<String>,
    folder: Folder,
}

impl Import {
    /// Checks that every tensor of the declared model is in `folder`, with its shape.
    ///
    /// # Errors
    /// [`Error::Tensors`] with the names that are missing or have another shape; a partly present MTP layer counts as
    /// missing tensors.
    pub fn new(folder: Folder) -> Result<Import> {
        refuse_more_than_held(&folder)?;
        let mut spec = folder.spec().clone();
        let declared = spec.mtp_layers;
        let mtp_prefix: Vec<String> = (spec.layers..spec.all_layers())
            .map(|layer| format!("model.layers.{layer}."))
            .collect();
        let of_mtp = |name: &str| mtp_prefix.iter().any(|prefix| name.starts_with(prefix));
        if !folder.names().any(of_mtp) {
            spec.mtp_layers = 0;
        }
        let inventory = Inventory::new(&spec);
        let wanted = shapes(&inventory);
        check(&folder, &wanted)?;
        let unexpected = folder
            .names()
            .filter(|name| !wanted.contains_key(*name) && !may_be_ignored(&spec, name))
            .map(str::to_string)
            .collect();
        let mtp_left_out = declared > spec.mtp_layers;
        Ok(Import { spec, inventory, mtp_left_out, unexpected, folder })
    }

    /// Fills `out` with a parameter: its parts one below the other.
    ///
    /// # Errors
    /// A failure to read, [`Error::Tensors`] for values that are not finite.
    ///
    /// # Panics
    /// If `out` has another length than the parameter.
    pub fn read_parameter(&self, parameter: &Parameter, out: &mut [f32]) -> Result<()> {
        assert_eq!(out.len(), parameter.elements(), "{}", parameter.name);
        let row = parameter.row_elements();
        let mut not_finite = Vec::new();
        for part in &parameter.parts {
            let range = part.first_row * row..(part.first_row + part.rows) * row;
            let values = &mut out[range];
            self.folder.read_into(&part.hf_name, 0, values)?;
            not_finite.extend(describe_not_finite(&part.hf_name, values));
        }
        self.refuse_not_finite(not_finite)
    }

    /// Fills `out` with a buffer (a gate's biases).
    ///
    /// # Errors
    /// As [`Import::read_parameter`].
    pub fn read_buffer(&self, buffer: &Buffer, out: &mut [f32]) -> Result<()> {
        self.folder.read_into(&buffer.hf_name, 0, out)?;
        self.refuse_not_finite(describe_not_finite(&buffer.hf_name, out).into_iter().collect())
    }

    fn refuse_not_finite(&self, names: Vec<String>) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let problem = "values that are not finite (NaN or infinity), from which nothing can be trained; take a good \
                       copy of the folder";
        let dir = self.folder.dir().to_path_buf();
        Err(Error::Tensors { dir, problem: problem.to_string(), names })
    }

    /// The folder itself.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }
}

/// How many values are not finite, with the tensor's name; none if all are.
fn describe_not_finite(name: &str, values: &[f32]) -> Option<String> {
    let count = values.iter().filter(|value| !value.is_finite()).count();
    (count > 0).then(|| format!("{name}: {count} of {}", values.len()))
}

/// Refuses a configuration that describes many more tensors than the folder holds, before a table of them is made. A layer
/// has at least two norms, and an expert three matrices.
fn refuse_more_than_held(folder: &Folder) -> Result<()> {
    let (spec, held) = (folder.spec(), folder.len() as u64);
    let layers = 2 * spec.layers as u64;
    let experts = spec.moe.as_ref().map_or(0, |moe| {
        let layers = spec.layers.saturating_sub(moe.first_dense_layers) as u64;
        layers.saturating_mul(3 * moe.experts as u64)
    });
    let least = layers.saturating_add(experts);
    // A few that are missing are named one by one.
    if least / 64 <= held {
        return Ok(());
    }
    let problem = format!(
        "it describes {} layers with {} experts, which are at least {least} tensors, and the folder holds {held}: it is \
         the configuration of another model",
        spec.layers,
        spec.moe.as_ref().map_or(0, |moe| moe.experts)
    );
    Err(Error::malformed(&folder.dir().join(super::CONFIG_FILE), problem))
}

/// Shape of every Hugging Face tensor of a model.
pub(super) fn shapes(inventory: &Inventory) -> BTreeMap<&str, Vec<usize>> {
    let parts = inventory.parameters.iter().flat_map(|parameter| {
        parameter.parts.iter().map(|part| {
            let mut shape = parameter.shape.clone();
            shape[0] = part.rows;
            (part.hf_name.as_str(), shape)
        })
    });
    let buffers = inventory.buffers.iter().map(|b| (b.hf_name.as_str(), b.shape.clone()));
    parts.chain(buffers).collect()
}

fn check(folder: &Folder, wanted: &BTreeMap<&str, Vec<usize>>) -> Result<()> {
    let fail = |problem: &str, names: Vec<String>| match names.is_empty() {
        true => Ok(()),
        false => Err(Error::Tensors {
            dir: folder.dir().to_path_buf(),
            problem: problem.to_string(),
            names,
        }),
    };
    let missing = wanted.keys().filter(|name| folder.shape(name).is_none());
    fail("missing tensors", missing.map(|name| name.to_string()).collect())?;
    let differing = wanted.iter().filter_map(|(name, shape)| match folder.shape(name) {
        Some(found) if found != shape => {
            Some(format!("{name}: {found:?}, config.json says {shape:?}"))
        }
        _ => None,
    });
    fail("tensors of another shape than config.json says", differing.collect())
}

/// Tensors that repeat others or can be computed: an MTP layer's copies of embedding and head, the head of a model that
/// ties it to the embedding, old releases' RoPE frequencies.
fn may_be_ignored(spec: &ModelSpec, name: &str) -> bool {
    if name.ends_with(".rotary_emb.inv_freq") || (spec.tie_embeddings && name == "lm_head.weight") {
        return true;
    }
    (spec.layers..spec.all_layers())
        .any(|layer| duplicates(layer).iter().any(|(duplicate, _)| duplicate.as_str() == name))
}

/// The tensors of MTP layer `layer` that repeat tensors of the main model: `(duplicate, original)`.
pub(super) fn duplicates(layer: usize) -> [(String, &'static str); 2] {
    [
        (format!("model.layers.{layer}.embed_tokens.weight"), "model.embed_tokens.weight"),
        (format!("model.layers.{layer}.shared_head.head.weight"), "lm_head.weight"),
    ]
}
