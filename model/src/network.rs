//! One network: from a segment and its inputs to its outputs.

use crate::deepseek::{gate, mla};
use crate::llama::attention::{self, Heads};
use crate::weights::{LayerIds, sourced};
use crate::{Blocks, Error, MicroBatch, Result, Weights, rope};
use lampyris_plan::Inventory;
use lampyris_plan::inventory::ParameterId;
use lampyris_plan::model_spec::{Attention, Gate, ModelSpec};
use lampyris_plan::segments::{Graph, Segment};
use lampyris_torch::{Sink, ops};
use std::sync::Arc;
use tch::{Device, Tensor};

/// A network without its weights: sizes, parameter ids, tables.
#[derive(Debug)]
pub struct Network {
    /// Sizes.
    pub spec: ModelSpec,
    /// Parameters and buffers.
    pub inventory: Arc<Inventory>,
    /// Segments and slots.
    pub graph: Arc<Graph>,
    layers: Vec<LayerIds>,
    embedding: ParameterId,
    final_norm: ParameterId,
    head: ParameterId,
    cos: Tensor,
    sin: Tensor,
    /// Requires a gradient; see [`ops::embedding`].
    anchor: Tensor,
}

/// What a segment needs beside its inputs.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// Weights.
    pub weights: &'a Weights,
    /// Gate biases by decoder layer; empty where the layer has none.
    pub biases: &'a [Vec<f32>],
    /// Tokens.
    pub batch: &'a MicroBatch,
    /// Receives weight gradients.
    pub sink: &'a Sink,
    /// Rows of the layer's experts, for its experts segment.
    pub blocks: Option<&'a Blocks>,
    /// cos and sin, filled in by [`Network::forward`]; callers use [`Network::context`].
    pub(crate) angles: (&'a Tensor, &'a Tensor),
}

/// Outputs of a segment.
#[derive(Debug, Default)]
pub struct SegmentOutput {
    /// In the order of [`Graph::writes`].
    pub slots: Vec<Tensor>,
    /// The gate's choice, expert of each `[T, K]` slot.
    pub experts: Option<Vec<i64>>,
}

impl Network {
    /// Builds the network of `spec`, whose parameters `inventory` lists, for sequences of at most `positions` tokens.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for gates that this release only plans.
    pub fn new(
        spec: &ModelSpec,
        inventory: Arc<Inventory>,
        positions: usize,
        device: Device,
    ) -> Result<Network> {
        if spec.moe.as_ref().is_some_and(|moe| moe.gate != Gate::SigmoidBias) {
            return Err(Error::Unsupported("a softmax gate"));
        }
        let id = |name: &str| inventory.find(name).map(|p| p.id);
        let embedding = id("embedding").expect("every model has an embedding");
        let rotary = match spec.attention {
            Attention::Gqa { head_dim, .. } => head_dim,
            Attention::Mla { rope_dim, .. } => rope_dim,
        };
        let (cos, sin) = rope::angles(&spec.rope, rotary, positions, device);
        Ok(Network {
            spec: spec.clone(),
            graph: Arc::new(Graph::new(spec)),
            layers: (0..spec.all_layers()).map(|l| LayerIds::find(&inventory, l)).collect(),
            embedding,
            final_norm: id("final_norm").expect("every model has a final norm"),
            head: id("head").unwrap_or(embedding),
            inventory,
            cos,
            sin,
            anchor: Tensor::zeros([1], (tch::Kind::Float, device)).set_requires_grad(true),
        })
    }

    /// A context for [`Network::forward`].
    pub fn context<'a>(
        &'a self,
        weights: &'a Weights,
        biases: &'a [Vec<f32>],
        batch: &'a MicroBatch,
        sink: &'a Sink,
    ) -> Context<'a> {
        Context { weights, biases, batch, sink, blocks: None, angles: (&self.cos, &self.sin) }
    }

    /// The head's parameter: the embedding if they are tied.
    pub fn head(&self) -> ParameterId {
        self.head
    }

    /// The tensor that stands in for the inputs of a segment that has none: it requires a gradient.
    pub fn anchor(&self) -> &Tensor {
        &self.anchor
    }

    /// Runs one segment on `inputs`, given in the order of [`Graph::reads`]. The head is not run here: see
    /// [`crate::head::forward`].
    pub fn forward(
        &self,
        segment: Segment,
        ctx: &Context<'_>,
        inputs: &[Tensor],
    ) -> Result<SegmentOutput> {
        let eps = self.spec.norm_eps;
        let norm = |x: &Tensor, id| ops::rms_norm(x, ctx.weights.get(id), eps, ctx.sink);
        let one = match segment {
            Segment::Embed => {
                let weight = ctx.weights.get(self.embedding);
                ops::embedding(weight, &ctx.batch.ids[0], &self.anchor, ctx.sink)?
            }
            Segment::Attention(layer) => return self.attention(layer, ctx, &inputs[0]),
            Segment::FeedForward(layer) => {
                &inputs[0] + self.feed_forward(layer, ctx, &inputs[1])?
            }
            Segment::Shared(layer) => self.feed_forward(layer, ctx, &inputs[0])?,
            Segment::Experts(layer) => self.experts(layer, ctx, &inputs[0], &inputs[1])?,
            Segment::Merge(_) => match inputs {
                [residual, shared, routed] => residual + (routed + shared),
                [residual, routed] => residual + routed,
                _ => unreachable!("the graph gives a merge two or three inputs"),
            },
            Segment::FinalNorm => norm(&inputs[0], self.final_norm)?,
            Segment::MtpInput(layer) => self.mtp_input(layer, ctx, &inputs[0])?,
            Segment::MtpNorm(layer) => {
                let ids = self.layers[layer].mtp.as_ref().expect("the graph knows MTP layers");
                norm(&inputs[0], ids.head_norm)?
            }
            Segment::Head(_) => unreachable!("the executor runs heads through head::forward"),
        };
        Ok(SegmentOutput { slots: vec![one], experts: None })
    }

    fn attention(&self, layer: usize, ctx: &Context<'_>, hidden: &Tensor) -> Result<SegmentOutput> {
        let (ids, eps) = (&self.layers[layer], self.spec.norm_eps);
        let attended = match self.spec.attention {
            Attention::Gqa { heads, kv_heads, head_dim } => {
                let interleaved = self.spec.rope.interleaved;
                let sizes = Heads { heads, kv_heads, head_dim, interleaved };
                attention::forward(ctx, ids, sizes, eps, hidden)?
            }
            Attention::Mla { heads, q_rank, kv_rank, nope_dim, rope_dim, v_dim } => {
                let scale = ((nope_dim + rope_dim) as f64).powf(-0.5);
                let sizes = mla::Sizes {
                    heads,
                    q_rank,
                    kv_rank,
                    nope: nope_dim,
                    rope: rope_dim,
                    value: v_dim,
                    scale: scale * rope::softmax_factor(&self.spec.rope),
                };
                mla::forward(ctx, ids, sizes, eps, hidden)?
            }
        };
        let residual = hidden + attended;
        let normed = ops::rms_norm(&residual, ctx.weights.get(ids.post_norm), eps, ctx.sink)?;
        let (Some(router), Some(moe)) = (ids.router, &self.spec.moe) else {
            return Ok(SegmentOutput { slots: vec![residual, normed], experts: None });
        };
        let gating = gate::forward(ctx, moe, layer, router, &normed)?;
        let mut slots = vec![residual, normed, gating.weights];
        slots.extend(gating.balance);
        Ok(SegmentOutput { slots, experts: Some(gating.experts) })
    }

    /// SwiGLU feed-forward of the dense layer or the shared expert.
    fn feed_forward(&self, layer: usize, ctx: &Context<'_>, x: &Tensor) -> Result<Tensor> {
        let (gate_up, down) =
            self.layers[layer].feed_forward.expect("the graph knows which layers have one");
        let inner = ops::linear(x, ctx.weights.get(gate_up), ctx.sink)?;
        let inner = ops::swiglu(&inner, None)?;
        Ok(ops::linear(&inner, ctx.weights.get(down), ctx.sink)?)
    }

    /// Routed experts on sorted rows `[rows, d]`; the routing weight `[rows]` scales the inner activation. Weight
    /// gradients arrive by block, under ids made by [`sourced`].
    fn experts(
        &self,
        layer: usize,
        ctx: &Context<'_>,
        rows: &Tensor,
        row_weights: &Tensor,
    ) -> Result<Tensor> {
        let blocks = ctx.blocks.expect("dispatch ran before the experts");
        let (mut gate_up, mut down) = (Vec::new(), Vec::new());
        for (expert, source) in blocks.owners() {
            let ids = self.layers[layer].experts[expert];
            for (weights, id) in [(&mut gate_up, ids.0), (&mut down, ids.1)] {
                let arrives = sourced(id, source, self.inventory.parameters.len());
                weights.push((ctx.weights.get(id).0, arrives));
            }
        }
        let offsets = &blocks.offsets;
        let inner = ops::grouped_linear(rows, &gate_up, offsets, ctx.sink)?;
        let inner = ops::swiglu(&inner, Some(row_weights))?;
        Ok(ops::grouped_linear(&inner, &down, offsets, ctx.sink)?)
    }

    /// `projection [norm(embedding of t_{i+k}); norm(hidden)]` (DeepSeek-V3, formula 21, in the order of the released
    /// weights).
    fn mtp_input(&self, layer: usize, ctx: &Context<'_>, hidden: &Tensor) -> Result<Tensor> {
        let ids = self.layers[layer].mtp.as_ref().expect("the graph knows MTP layers");
        let depth = layer + 1 - self.spec.layers;
        let eps = self.spec.norm_eps;
        let weight = ctx.weights.get(self.embedding);
        // Anchored at the hidden state, not at the network's anchor: backward walks only what leads to a segment's inputs.
        let embedded = ops::embedding(weight, &ctx.batch.ids[depth], hidden, ctx.sink)?;
        let embedded =
            ops::rms_norm(&embedded, ctx.weights.get(ids.embedding_norm), eps, ctx.sink)?;
        let hidden = ops::rms_norm(hidden, ctx.weights.get(ids.hidden_norm), eps, ctx.sink)?;
        let both = Tensor::cat(&[embedded, hidden], -1);
        Ok(ops::linear(&both, ctx.weights.get(ids.projection), ctx.sink)?)
    }
}
