//! Global coordinates: how the parameters of this project, which stack several Hugging Face tensors, are named and cut
//! in files. A coordinate is (Hugging Face tensor, kind, flat element range of the whole row-major tensor); no rank, no
//! bucket and no layout appears in it.

use lampyris_plan::Inventory;
use lampyris_plan::inventory::{Optimizer, Parameter, Part};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;

/// What the values of a tensor are. All are fp32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Master weight.
    Weight,
    /// First moment of AdamW; momentum of Muon.
    ExpAvg,
    /// Second moment of AdamW.
    ExpAvgSq,
    /// Selection biases of a gate.
    GateBias,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Weight => "weight",
            Kind::ExpAvg => "exp_avg",
            Kind::ExpAvgSq => "exp_avg_sq",
            Kind::GateBias => "gate_bias",
        })
    }
}

/// A tensor of a checkpoint, whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorEntry {
    /// Hugging Face name.
    pub name: String,
    /// Global shape.
    pub shape: Vec<usize>,
    /// What is kept of it.
    pub kinds: Vec<Kind>,
    /// Name of what updates it; none without moments, and in checkpoints that were written before this field was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<String>,
}

impl TensorEntry {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64
    }

    /// The same for a shape that nobody has checked; none if its bytes cannot be counted.
    pub(crate) fn checked_elements(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1usize, |all, &dim| all.checked_mul(dim))?;
        elements.checked_mul(size_of::<f32>())?;
        u64::try_from(elements).ok()
    }

    /// Whose moments are kept of it; none if there are no moments.
    ///
    /// # Errors
    /// The written name, if this version does not know it.
    pub fn optimizer(&self) -> Result<Option<Optimizer>, &str> {
        match &self.optimizer {
            Some(name) => optimizer_named(name).map(Some).ok_or(name.as_str()),
            None => Ok(self.optimizer_of_moments()),
        }
    }

    /// What checkpoints without the name mean: they were written when no two optimizers kept the same moments.
    fn optimizer_of_moments(&self) -> Option<Optimizer> {
        let has = |kind| self.kinds.contains(&kind);
        match (has(Kind::ExpAvg), has(Kind::ExpAvgSq)) {
            (true, true) => Some(Optimizer::AdamW),
            (true, false) => Some(Optimizer::Muon),
            (false, _) => None,
        }
    }

    /// Whether what is kept is what its optimizer keeps; true for an optimizer that is not written or not known.
    pub(crate) fn fits_optimizer(&self) -> bool {
        let named = self.optimizer.as_deref().and_then(optimizer_named);
        named.is_none_or(|optimizer| {
            let wanted = kept_by(optimizer);
            wanted.len() == self.kinds.len() && wanted.iter().all(|kind| self.kinds.contains(kind))
        })
    }
}

/// The name of an optimizer in checkpoints, that of `optimizer.kind` in recipes.
fn optimizer_name(optimizer: Optimizer) -> &'static str {
    match optimizer {
        Optimizer::AdamW => "adamw",
        Optimizer::Muon => "muon",
    }
}

fn optimizer_named(name: &str) -> Option<Optimizer> {
    [Optimizer::AdamW, Optimizer::Muon].into_iter().find(|&known| optimizer_name(known) == name)
}

/// What a training checkpoint keeps of a parameter.
pub fn kept(parameter: &Parameter) -> &'static [Kind] {
    kept_by(parameter.optimizer)
}

fn kept_by(optimizer: Optimizer) -> &'static [Kind] {
    match optimizer {
        Optimizer::AdamW => &[Kind::Weight, Kind::ExpAvg, Kind::ExpAvgSq],
        Optimizer::Muon => &[Kind::Weight, Kind::ExpAvg],
    }
}

/// Every tensor of a training checkpoint.
pub fn training_tensors(inventory: &Inventory) -> Vec<TensorEntry> {
    list(inventory, |parameter, part| {
        let optimizer = optimizer_name(parameter.optimizer).to_string();
        entry(parameter, part, kept(parameter), Some(optimizer))
    })
}

/// Every tensor of a model with `kinds` for the trained ones, in order of first use, gate biases last.
pub fn tensor_list(inventory: &Inventory, kinds: &[Kind]) -> Vec<TensorEntry> {
    list(inventory, |parameter, part| entry(parameter, part, kinds, None))
}

fn list(
    inventory: &Inventory,
    trained: impl Fn(&Parameter, &Part) -> TensorEntry,
) -> Vec<TensorEntry> {
    let mut list = Vec::new();
    for parameter in &inventory.parameters {
        list.extend(parameter.parts.iter().map(|part| trained(parameter, part)));
    }
    list.extend(inventory.buffers.iter().map(|buffer| TensorEntry {
        name: buffer.hf_name.clone(),
        shape: buffer.shape.clone(),
        kinds: vec![Kind::GateBias],
        optimizer: None,
    }));
    list
}

fn entry(
    parameter: &Parameter,
    part: &Part,
    kinds: &[Kind],
    optimizer: Option<String>,
) -> TensorEntry {
    let mut shape = parameter.shape.clone();
    shape[0] = part.rows;
    TensorEntry { name: part.hf_name.clone(), shape, kinds: kinds.to_vec(), optimizer }
}

/// A part of a parameter that lies in one Hugging Face tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRange<'a> {
    /// Hugging Face name.
    pub tensor: &'a str,
    /// First element in that tensor.
    pub start: u64,
    /// Elements of the parameter, counted from its beginning.
    pub within: Range<usize>,
}

/// Cuts elements `range` of a parameter along its Hugging Face tensors: parts are stacked along dimension 0, so each is
/// one contiguous range.
pub fn split(parameter: &Parameter, range: Range<usize>) -> Vec<TensorRange<'_>> {
    let row = parameter.row_elements();
    let cut = parameter.parts.iter().filter_map(|part| {
        let first = part.first_row * row;
        let start = range.start.max(first);
        let end = range.end.min(first + part.rows * row);
        (start < end).then(|| TensorRange {
            tensor: &part.hf_name,
            start: (start - first) as u64,
            within: start..end,
        })
    });
    cut.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{from_value, json, to_value};

    #[test]
    fn the_written_name_says_whose_moments_are_kept() {
        let read = |kinds: &[&str], optimizer: Option<&str>| {
            let mut entry = json!({ "name": "a", "shape": [2], "kinds": kinds });
            if let Some(name) = optimizer {
                entry["optimizer"] = json!(name);
            }
            let read: TensorEntry = from_value(entry.clone()).expect("an entry");
            assert_eq!(to_value(&read).expect("JSON"), entry, "an absent field stays absent");
            read
        };
        let (one, two) = (["weight", "exp_avg"], ["weight", "exp_avg", "exp_avg_sq"]);
        for optimizer in [Optimizer::AdamW, Optimizer::Muon] {
            let kinds: &[&str] = if kept_by(optimizer).len() == 3 { &two } else { &one };
            for written in [Some(optimizer_name(optimizer)), None] {
                let entry = read(kinds, written);
                assert_eq!(entry.optimizer(), Ok(Some(optimizer)), "{written:?}");
                assert!(entry.fits_optimizer());
            }
        }
        assert_eq!(read(&["weight"], None).optimizer(), Ok(None));
        // One moment, and not Muon's.
        assert_eq!(read(&one, Some("lion")).optimizer(), Err("lion"));
        assert!(read(&one, Some("lion")).fits_optimizer());
        assert!(!read(&one, Some("adamw")).fits_optimizer());
        assert!(!read(&two, Some("muon")).fits_optimizer());
    }

    #[test]
    fn a_range_is_cut_where_its_tensors_meet() {
        let inventory = Inventory::default();
        assert_eq!(tensor_list(&inventory, &[Kind::Weight]), []);
        let part =
            |name: &str, first_row, rows| Part { hf_name: name.to_string(), first_row, rows };
        let parameter = Parameter {
            id: 0,
            name: "qkv".to_string(),
            shape: vec![6, 10],
            parts: vec![part("q", 0, 3), part("k", 3, 1), part("v", 4, 2)],
            kind: lampyris_plan::inventory::Kind::Attention,
            layer: None,
            group: lampyris_plan::inventory::Group::Dense,
            storage: lampyris_plan::inventory::Storage::Compute,
            init: lampyris_plan::inventory::Init::Ones,
            decay: true,
            optimizer: Optimizer::AdamW,
            segments: Vec::new(),
        };
        let cut = |range| {
            let cut = split(&parameter, range);
            cut.into_iter().map(|r| (r.tensor.to_string(), r.start, r.within)).collect::<Vec<_>>()
        };
        let name = |name: &str| name.to_string();
        let whole = [(name("q"), 0, 0..30), (name("k"), 0, 30..40), (name("v"), 0, 40..60)];
        assert_eq!(cut(0..60), whole);
        assert_eq!(cut(25..33), [(name("q"), 25, 25..30), (name("k"), 0, 30..33)]);
        assert_eq!(cut(47..48), [(name("v"), 7, 47..48)]);
        assert_eq!(cut(30..30), []);
    }
}
