//! Lists the parameters of a network in order of first use, each with its Hugging Face names and the segments that read it.

use super::{Buffer, Group, Init, Inventory, Kind, Optimizer, Parameter, Part, Storage};
use crate::model_spec::{Attention, Gate, ModelSpec};
use crate::segments::Segment;

/// The inventory of `spec`, updated by AdamW.
pub(super) fn build(spec: &ModelSpec) -> Inventory {
    Builder { spec, out: Inventory::default(), segment: Segment::Embed }.build()
}

struct Builder<'a> {
    spec: &'a ModelSpec,
    out: Inventory,
    /// The segment that reads the parameters which are pushed next.
    segment: Segment,
}

impl Builder<'_> {
    fn build(mut self) -> Inventory {
        let (vocab, hidden) = (self.spec.vocab_size, self.spec.hidden);
        let mtp = self.spec.layers..self.spec.all_layers();
        let heads = (0..=self.spec.mtp_layers).map(Segment::Head);
        self.matrix("embedding", vocab, hidden, &[("model.embed_tokens.weight", vocab)], None);
        self.last().kind = Kind::Embedding;
        let tied = heads.clone().filter(|_| self.spec.tie_embeddings);
        let mut readers: Vec<Segment> = mtp.clone().map(Segment::MtpInput).chain(tied).collect();
        readers.sort_by_key(|segment| self.place(*segment));
        self.last().segments.extend(readers);
        for layer in 0..self.spec.layers {
            self.layer(layer);
        }
        self.segment = Segment::FinalNorm;
        self.norm("final_norm", "model.norm.weight", hidden, None);
        if !self.spec.tie_embeddings {
            self.matrix("head", vocab, hidden, &[("lm_head.weight", vocab)], None);
            self.last().kind = Kind::Head;
            self.last().segments = heads.collect();
        }
        for layer in mtp {
            self.mtp_layer(layer);
        }
        self.out
    }

    /// Where a segment that reads tokens or makes a loss stands among them in the forward pass: head 0, then input and head
    /// of each MTP layer.
    fn place(&self, segment: Segment) -> (usize, bool) {
        match segment {
            Segment::MtpInput(layer) => (layer + 1 - self.spec.layers, false),
            Segment::Head(depth) => (depth, true),
            _ => (0, false),
        }
    }

    fn layer(&mut self, layer: usize) {
        let hf = format!("model.layers.{layer}");
        let name = format!("layers.{layer}");
        let hidden = self.spec.hidden;
        let at = Some(layer);
        self.segment = Segment::Attention(layer);
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
            self.segment = Segment::FeedForward(layer);
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
        if moe.gate == Gate::SigmoidBias {
            self.out.buffers.push(Buffer {
                hf_name: format!("{hf}.gate.e_score_correction_bias"),
                shape: vec![moe.experts],
                layer,
            });
        }
        if moe.shared_experts > 0 {
            let width = self.spec.shared_hidden();
            self.segment = Segment::Shared(layer);
            self.feed_forward(
                &format!("{name}.shared"),
                &format!("{hf}.shared_experts"),
                width,
                at,
            );
        }
        self.segment = Segment::Experts(layer);
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
        self.segment = Segment::MtpInput(layer);
        self.norm(&format!("{name}.embedding_norm"), &format!("{hf}.enorm.weight"), hidden, at);
        self.norm(&format!("{name}.hidden_norm"), &format!("{hf}.hnorm.weight"), hidden, at);
        let projection = [(format!("{hf}.eh_proj.weight"), hidden)];
        self.stacked(&format!("{name}.projection"), 2 * hidden, &projection, at);
        self.last().kind = Kind::MtpProjection;
        self.layer(layer);
        self.segment = Segment::MtpNorm(layer);
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
            segments: vec![self.segment],
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
            segments: vec![self.segment],
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
