//! The list of parameters and buffers of a network: one entry per flat piece of memory, with the Hugging Face tensors
//! it holds. Matrices that read the same input stand in one parameter, one below the other (`parts`), so that they are
//! one matrix product; on disk each part is a tensor of its own.

use crate::model_spec::ModelSpec;
use crate::segments::Segment;
use crate::train_plan::TrainPlan;
use std::fmt;

mod builder;

/// Index of a parameter in [`Inventory::parameters`].
pub type ParameterId = usize;

/// One trainable parameter.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Position in the inventory: order of first use in the forward pass.
    pub id: ParameterId,
    /// Name in this project, e.g. `layers.3.experts.7.gate_up`.
    pub name: String,
    /// `[out, in]` or `[size]`.
    pub shape: Vec<usize>,
    /// Hugging Face tensors, stacked along dimension 0. One entry for most parameters.
    pub parts: Vec<Part>,
    /// What it is.
    pub kind: Kind,
    /// Decoder layer, MTP layers counted after the main ones; none for embedding, final norm and head.
    pub layer: Option<usize>,
    /// The ranks among which its gradient is summed.
    pub group: Group,
    /// Element type that the forward pass reads.
    pub storage: Storage,
    /// Initial values.
    pub init: Init,
    /// Whether weight decay applies.
    pub decay: bool,
    /// What updates it.
    pub optimizer: Optimizer,
    /// The segments that read it in the forward pass, in forward order. Each contributes to its gradient once a micro-batch;
    /// embedding and head have several with MTP.
    pub segments: Vec<Segment>,
}

/// A Hugging Face tensor inside a parameter: rows `[first_row, first_row + rows)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Name in a Hugging Face checkpoint.
    pub hf_name: String,
    /// First row (dimension 0) in the parameter.
    pub first_row: usize,
    /// Number of rows.
    pub rows: usize,
}

/// What a parameter is; decides initial values, decay and how a report groups it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Token embedding `[V, d]`.
    Embedding,
    /// Output head `[V, d]`.
    Head,
    /// RMSNorm weight.
    Norm,
    /// Attention matrix.
    Attention,
    /// Dense or shared feed-forward matrix.
    FeedForward,
    /// Gate matrix `[E, d]`.
    Router,
    /// Matrix of routed expert `expert`.
    Expert {
        /// Expert index, 0-based.
        expert: usize,
    },
    /// MTP projection `[d, 2d]`.
    MtpProjection,
}

/// Reduction group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Group {
    /// Replicated over all data-parallel ranks.
    Dense,
    /// Owned by one expert-parallel rank, replicated over the expert-data axis.
    Expert,
}

/// Element type of the copy that the forward pass reads. Master weights are always fp32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Storage {
    /// The plan's compute type.
    Compute,
    /// fp32 always: norms and router.
    Fp32,
}

/// What updates a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Optimizer {
    /// Element by element, with two moments.
    AdamW,
    /// Matrix by matrix (each part of the parameter for itself), with one moment.
    Muon,
}

impl Optimizer {
    /// fp32 values that it keeps of every element from one step to the next.
    pub fn moments(self) -> usize {
        match self {
            Optimizer::AdamW => 2,
            Optimizer::Muon => 1,
        }
    }
}

impl fmt::Display for Optimizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Optimizer::AdamW => "AdamW",
            Optimizer::Muon => "Muon",
        })
    }
}

/// Initial values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// All ones.
    Ones,
}

/// State that is not trained by gradient: the gate's selection biases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buffer {
    /// Name in a Hugging Face checkpoint.
    pub hf_name: String,
    /// Shape; fp32.
    pub shape: Vec<usize>,
    /// Decoder layer.
    pub layer: usize,
}

/// All parameters and buffers of a network, in order of first use in the forward pass.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Inventory {
    /// Trainable parameters.
    pub parameters: Vec<Parameter>,
    /// Gate biases.
    pub buffers: Vec<Buffer>,
}

impl Parameter {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements of one row: the product of all dimensions but the first.
    pub fn row_elements(&self) -> usize {
        self.shape[1..].iter().product()
    }
}

impl Inventory {
    /// The inventory of `spec`, updated by AdamW.
    pub fn new(spec: &ModelSpec) -> Inventory {
        builder::build(spec)
    }

    /// The inventory of the network that `plan` trains. With Muon the hidden matrices are its; embedding, head, gates and
    /// norms are AdamW's (2502.16982, section 2.2).
    pub fn of(plan: &TrainPlan) -> Inventory {
        let mut inventory = Inventory::new(&plan.model);
        if plan.optimizer.muon.is_some() {
            for parameter in &mut inventory.parameters {
                parameter.optimizer = match parameter.kind {
                    Kind::Attention
                    | Kind::FeedForward
                    | Kind::Expert { .. }
                    | Kind::MtpProjection => Optimizer::Muon,
                    Kind::Embedding | Kind::Head | Kind::Norm | Kind::Router => Optimizer::AdamW,
                };
            }
        }
        inventory
    }

    /// Trainable elements, gate biases not counted; `(main model, MTP layers)`.
    pub fn count(&self, spec: &ModelSpec) -> (u64, u64) {
        let of = |mtp: bool| {
            self.parameters
                .iter()
                .filter(|p| p.layer.is_some_and(|layer| layer >= spec.layers) == mtp)
                .map(|p| p.elements() as u64)
                .sum()
        };
        (of(false), of(true))
    }

    /// Elements of the main model that one token uses: routed experts counted K of E.
    pub fn count_active(&self, spec: &ModelSpec) -> u64 {
        let experts_per_token = spec.moe.as_ref().map_or(0, |moe| moe.experts_per_token);
        self.parameters
            .iter()
            .filter(|p| p.layer.is_none_or(|layer| layer < spec.layers))
            .filter(|p| !matches!(p.kind, Kind::Expert { expert } if expert >= experts_per_token))
            .map(|p| p.elements() as u64)
            .sum()
    }

    /// Routed experts of a layer; 0 for a dense network.
    pub fn experts(&self) -> usize {
        let expert = |p: &Parameter| match p.kind {
            Kind::Expert { expert } => Some(expert + 1),
            _ => None,
        };
        self.parameters.iter().filter_map(expert).max().unwrap_or(0)
    }

    /// The parameter named `name`.
    pub fn find(&self, name: &str) -> Option<&Parameter> {
        self.parameters.iter().find(|p| p.name == name)
    }
}
