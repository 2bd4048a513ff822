//! The list of parameters and buffers of a network: one entry per flat piece of memory, with the Hugging Face tensors
//! it holds. Matrices that read the same input stand in one parameter, one below the other (`parts`), so that they are
//! one matrix product; on disk each part is a tensor of its own.

use crate::model_spec::{Attention, ModelSpec};
use crate::train_plan::TrainPlan;
use std::fmt;

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
    /// Gradient contributions per micro-batch (embedding and head have two with MTP).
    pub contributions: usize,
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
        Builder { spec, out: Inventory::default() }.build()
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

struct Builder<'a> {
    spec: &'a ModelSpec,
    out: Inventory,
}

impl Builder<'_> {
    fn build(mut self) -> Inventory {
        let (vocab, hidden) = (self.spec.vocab_size, self.spec.hidden);
        let uses = 1 + self.spec.mtp_layers;
        let heads = if self.spec.tie_embeddings { uses } else { 0 };
        self.matrix("embedding", vocab, hidden, &[("model.embed_tokens.weight", vocab)], None);
        self.last().kind = Kind::Embedding;
        self.last().contributions = uses + heads;
        for layer in 0..self.spec.layers {
            self.layer(layer);
        }
        self.norm("final_norm", "model.norm.weight", hidden, None);
        if !self.spec.tie_embeddings {
            self.matrix("head", vocab, hidden, &[("lm_head.weight", vocab)], None);
            self.last().kind = Kind::Head;
            self.last().contributions = uses;
        }
        for layer in self.spec.layers..self.spec.all_layers() {
            self.mtp_layer(layer);
        }
        self.out
    }

    fn layer(&mut self, layer: usize) {
        let hf = format!("model.layers.{layer}");
        let name = format!("layers.{layer}");
        let hidden = self.spec.hidden;
        let at = Some(layer);
        self.norm(
            &format!("{name}.input_norm"),
            &format!("{hf}.input_layernorm.weight"),
            hidden,
            at,
        );
        self.attention(layer, &name, &format!("{hf}.self_attn"));
        let post = format!("{hf}.post_attention_layernorm.weight");
        self.norm(&format!("{name}.post_norm"), &post, hidden, at);
        if self.spec.is_moe_layer(layer) {
            self.moe(layer, &name, &format!("{hf}.mlp"));
        } else {
            let width = self.spec.ffn_hidden;
            self.feed_forward(&format!("{name}.mlp"), &format!("{hf}.mlp"), width, at);
        }
    }

    fn attention(&mut self, layer: usize, name: &str, hf: &str) {
        let hidden = self.spec.hidden;
        let at = Some(layer);
        let name = format!("{name}.attention");
        let weight = |suffix: &str| format!("{hf}.{suffix}.weight");
        let out_width = match self.spec.attention {
            Attention::Gqa { heads, kv_heads, head_dim } => {
                let (q, kv) = (heads * head_dim, kv_heads * head_dim);
                let parts = [(weight("q_proj"), q), (weight("k_proj"), kv), (weight("v_proj"), kv)];
                self.stacked(&format!("{name}.qkv"), hidden, &parts, at);
                q
            }
            Attention::Mla { heads, q_rank, kv_rank, nope_dim, rope_dim, v_dim } => {
                let q = heads * (nope_dim + rope_dim);
                let kv_a = (weight("kv_a_proj_with_mqa"), kv_rank + rope_dim);
                let down = match q_rank {
                    Some(rank) => [(weight("q_a_proj"), rank), kv_a],
                    None => [(weight("q_proj"), q), kv_a],
                };
                self.stacked(&format!("{name}.q_kv_a"), hidden, &down, at);
                if let Some(rank) = q_rank {
                    self.norm(&format!("{name}.q_a_norm"), &weight("q_a_layernorm"), rank, at);
                    self.stacked(&format!("{name}.q_b"), rank, &[(weight("q_b_proj"), q)], at);
                }
                self.norm(&format!("{name}.kv_a_norm"), &weight("kv_a_layernorm"), kv_rank, at);
                let kv = (weight("kv_b_proj"), heads * (nope_dim + v_dim));
                self.stacked(&format!("{name}.kv_b"), kv_rank, &[kv], at);
                heads * v_dim
            }
        };
        self.stacked(&format!("{name}.o"), out_width, &[(weight("o_proj"), hidden)], at);
    }

    fn feed_forward(&mut self, name: &str, hf: &str, width: usize, layer: Option<usize>) {
        let hidden = self.spec.hidden;
        let gate_up =
            [(format!("{hf}.gate_proj.weight"), width), (format!("{hf}.up_proj.weight"), width)];
        self.stacked(&format!("{name}.gate_up"), hidden, &gate_up, layer);
        self.last().kind = Kind::FeedForward;
        let down = [(format!("{hf}.down_proj.weight"), hidden)];
        self.stacked(&format!("{name}.down"), width, &down, layer);
        self.last().kind = Kind::FeedForward;
    }

    fn moe(&mut self, layer: usize, name: &str, hf: &str) {
        let Some(moe) = self.spec.moe.clone() else { return };
        let at = Some(layer);
        let gate = [(format!("{hf}.gate.weight"), moe.experts)];
        self.stacked(&format!("{name}.router"), self.spec.hidden, &gate, at);
        self.last().kind = Kind::Router;
        self.last().storage = Storage::Fp32;
        if moe.gate == crate::model_spec::Gate::SigmoidBias {
            self.out.buffers.push(Buffer {
                hf_name: format!("{hf}.gate.e_score_correction_bias"),
                shape: vec![moe.experts],
                layer,
            });
        }
        if moe.shared_experts > 0 {
            let width = self.spec.shared_hidden();
            self.feed_forward(
                &format!("{name}.shared"),
                &format!("{hf}.shared_experts"),
                width,
                at,
            );
        }
        for expert in 0..moe.experts {
            let first = self.out.parameters.len();
            let hf = format!("{hf}.experts.{expert}");
            self.feed_forward(&format!("{name}.experts.{expert}"), &hf, moe.expert_hidden, at);
            for parameter in &mut self.out.parameters[first..] {
                parameter.kind = Kind::Expert { expert };
                parameter.group = Group::Expert;
            }
        }
    }

    /// DeepSeek-V3, section 2.2; released weights concatenate `[enorm(embedding); hnorm(hidden)]`.
    fn mtp_layer(&mut self, layer: usize) {
        let hf = format!("model.layers.{layer}");
        let name = format!("layers.{layer}");
        let hidden = self.spec.hidden;
        let at = Some(layer);
        self.norm(&format!("{name}.embedding_norm"), &format!("{hf}.enorm.weight"), hidden, at);
        self.norm(&format!("{name}.hidden_norm"), &format!("{hf}.hnorm.weight"), hidden, at);
        let projection = [(format!("{hf}.eh_proj.weight"), hidden)];
        self.stacked(&format!("{name}.projection"), 2 * hidden, &projection, at);
        self.last().kind = Kind::MtpProjection;
        self.layer(layer);
        let head_norm = format!("{hf}.shared_head.norm.weight");
        self.norm(&format!("{name}.head_norm"), &head_norm, hidden, at);
    }

    fn stacked(
        &mut self,
        name: &str,
        columns: usize,
        parts: &[(String, usize)],
        layer: Option<usize>,
    ) {
        let parts: Vec<(&str, usize)> = parts.iter().map(|(n, r)| (n.as_str(), *r)).collect();
        let rows = parts.iter().map(|(_, rows)| rows).sum();
        self.matrix(name, rows, columns, &parts, layer);
    }

    fn matrix(
        &mut self,
        name: &str,
        rows: usize,
        columns: usize,
        parts: &[(&str, usize)],
        layer: Option<usize>,
    ) {
        let mut first_row = 0;
        let parts = parts
            .iter()
            .map(|&(hf_name, rows)| {
                let part = Part { hf_name: hf_name.to_string(), first_row, rows };
                first_row += rows;
                part
            })
            .collect();
        self.push(Parameter {
            id: 0,
            name: name.to_string(),
            shape: vec![rows, columns],
            parts,
            kind: Kind::Attention,
            layer,
            group: Group::Dense,
            storage: Storage::Compute,
            init: Init::Normal(self.spec.init_std),
            decay: true,
            optimizer: Optimizer::AdamW,
            contributions: 1,
        });
    }

    fn norm(&mut self, name: &str, hf_name: &str, size: usize, layer: Option<usize>) {
        self.push(Parameter {
            id: 0,
            name: name.to_string(),
            shape: vec![size],
            parts: vec![Part { hf_name: hf_name.to_string(), first_row: 0, rows: size }],
            kind: Kind::Norm,
            layer,
            group: Group::Dense,
            storage: Storage::Fp32,
            init: Init::Ones,
            decay: false,
            optimizer: Optimizer::AdamW,
            contributions: 1,
        });
    }

    fn push(&mut self, mut parameter: Parameter) {
        parameter.id = self.out.parameters.len();
        self.out.parameters.push(parameter);
    }

    fn last(&mut self) -> &mut Parameter {
        self.out.parameters.last_mut().expect("called right after a push")
    }
}
