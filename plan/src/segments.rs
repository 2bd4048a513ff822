//! The graph of a micro-batch: compute **segments** and the named **slots** between them (docs/architecture.md, "The
//! heart"). A segment is an autograd island; communication stands between segments, never inside.
//!
//! ```text
//! attention+gate -+-> dispatch -> experts -> combine -+-> merge
//!                 +-> shared expert ------------------+
//!                 +-> residual -----------------------+
//! ```

use crate::model_spec::ModelSpec;
use std::fmt;

/// A piece of the network that one `forward` call computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Segment {
    /// Token ids -> hidden state.
    Embed,
    /// Norm, attention, residual, norm; in an MoE layer the gate too.
    Attention(usize),
    /// Dense feed-forward and residual.
    FeedForward(usize),
    /// Shared expert.
    Shared(usize),
    /// Routed experts on sorted rows.
    Experts(usize),
    /// Residual + shared + routed.
    Merge(usize),
    /// Final norm.
    FinalNorm,
    /// MTP layer: norms of embedding and hidden state, projection (DeepSeek-V3, eq. 21).
    MtpInput(usize),
    /// MTP layer: norm before the shared head.
    MtpNorm(usize),
    /// Output head and loss at prediction depth k (0 = next token). Makes its gradient in the forward pass.
    Head(usize),
}

/// A named value of a micro-batch that leaves a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// Input of decoder layer, `[tokens, hidden]`.
    Hidden(usize),
    /// Residual stream after attention, `[tokens, hidden]`.
    Residual(usize),
    /// Normed residual that feed-forward, experts and gate read, `[tokens, hidden]`.
    Normed(usize),
    /// Routing weights, fp32 `[tokens, experts_per_token]`.
    RouteWeights(usize),
    /// Sequence-wise balance loss of the layer, scalar.
    Balance(usize),
    /// Rows sorted by expert, padded, `[rows, hidden]`.
    Rows(usize),
    /// Routing weight of each row, fp32 `[rows]`.
    RowWeights(usize),
    /// Weighted expert outputs, `[rows, hidden]`.
    ExpertRows(usize),
    /// Sum of a token's expert outputs, `[tokens, hidden]`.
    Routed(usize),
    /// Shared expert's output, `[tokens, hidden]`.
    SharedOut(usize),
    /// Output of the last main layer, `[tokens, hidden]`.
    Trunk,
    /// After the final norm; read by the head and by MTP.
    Final,
    /// Output of an MTP layer.
    MtpOut(usize),
    /// After an MTP layer's head norm; read by the head and by the next MTP layer.
    MtpFinal(usize),
}

/// The segments and exchanges of one network, in forward order.
#[derive(Debug, Clone)]
pub struct Graph {
    layers: usize,
    mtp_layers: usize,
    moe: Vec<bool>,
    shared: bool,
    balance: bool,
}

/// One operation of the forward pass: a segment, or an exchange of rows between tokens and experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Compute.
    Segment(Segment),
    /// Rows to experts in this layer.
    Dispatch(usize),
    /// Rows back to tokens in this layer.
    Combine(usize),
}

impl Graph {
    /// The graph of `spec`.
    pub fn new(spec: &ModelSpec) -> Graph {
        Graph {
            layers: spec.layers,
            mtp_layers: spec.mtp_layers,
            moe: (0..spec.all_layers()).map(|layer| spec.is_moe_layer(layer)).collect(),
            shared: spec.shared_hidden() > 0,
            balance: spec.moe.as_ref().is_some_and(|moe| moe.balance_loss > 0.0),
        }
    }

    /// Prediction depths: 1 for the next token and one per MTP layer.
    pub fn depths(&self) -> usize {
        1 + self.mtp_layers
    }

    /// Whether the layer's rows travel to experts and back.
    pub fn exchanges(&self, layer: usize) -> bool {
        self.moe[layer]
    }

    /// All operations of one micro-batch's forward pass. The shared expert stands under the flight of the routed rows.
    pub fn forward(&self) -> Vec<Operation> {
        let mut out = vec![Operation::Segment(Segment::Embed)];
        for layer in 0..self.layers {
            self.layer(layer, &mut out);
        }
        out.push(Operation::Segment(Segment::FinalNorm));
        out.push(Operation::Segment(Segment::Head(0)));
        for layer in self.layers..self.layers + self.mtp_layers {
            out.push(Operation::Segment(Segment::MtpInput(layer)));
            self.layer(layer, &mut out);
            out.push(Operation::Segment(Segment::MtpNorm(layer)));
            out.push(Operation::Segment(Segment::Head(layer + 1 - self.layers)));
        }
        out
    }

    fn layer(&self, layer: usize, out: &mut Vec<Operation>) {
        out.push(Operation::Segment(Segment::Attention(layer)));
        if !self.moe[layer] {
            out.push(Operation::Segment(Segment::FeedForward(layer)));
            return;
        }
        out.push(Operation::Dispatch(layer));
        if self.shared {
            out.push(Operation::Segment(Segment::Shared(layer)));
        }
        out.push(Operation::Segment(Segment::Experts(layer)));
        out.push(Operation::Combine(layer));
        out.push(Operation::Segment(Segment::Merge(layer)));
    }

    fn output(&self, layer: usize) -> Slot {
        if layer >= self.layers {
            Slot::MtpOut(layer)
        } else if layer + 1 == self.layers {
            Slot::Trunk
        } else {
            Slot::Hidden(layer + 1)
        }
    }

    /// Slots that an operation reads, in the order in which the model takes them.
    pub fn reads(&self, operation: Operation) -> Vec<Slot> {
        match operation {
            Operation::Dispatch(l) => vec![Slot::Normed(l), Slot::RouteWeights(l)],
            Operation::Combine(l) => vec![Slot::ExpertRows(l)],
            Operation::Segment(segment) => match segment {
                Segment::Embed => vec![],
                Segment::Attention(l) => vec![Slot::Hidden(l)],
                Segment::FeedForward(l) => vec![Slot::Residual(l), Slot::Normed(l)],
                Segment::Shared(l) => vec![Slot::Normed(l)],
                Segment::Experts(l) => vec![Slot::Rows(l), Slot::RowWeights(l)],
                Segment::Merge(l) if self.shared => {
                    vec![Slot::Residual(l), Slot::SharedOut(l), Slot::Routed(l)]
                }
                Segment::Merge(l) => vec![Slot::Residual(l), Slot::Routed(l)],
                Segment::FinalNorm => vec![Slot::Trunk],
                Segment::MtpInput(l) if l == self.layers => vec![Slot::Final],
                Segment::MtpInput(l) => vec![Slot::MtpFinal(l - 1)],
                Segment::MtpNorm(l) => vec![Slot::MtpOut(l)],
                Segment::Head(0) => vec![Slot::Final],
                Segment::Head(k) => vec![Slot::MtpFinal(self.layers + k - 1)],
            },
        }
    }

    /// Slots that an operation writes, in the order in which the model returns them.
    pub fn writes(&self, operation: Operation) -> Vec<Slot> {
        match operation {
            Operation::Dispatch(l) => vec![Slot::Rows(l), Slot::RowWeights(l)],
            Operation::Combine(l) => vec![Slot::Routed(l)],
            Operation::Segment(segment) => match segment {
                Segment::Embed => {
                    vec![if self.layers == 0 { Slot::Trunk } else { Slot::Hidden(0) }]
                }
                Segment::Attention(l) if !self.moe[l] => vec![Slot::Residual(l), Slot::Normed(l)],
                Segment::Attention(l) if self.balance => vec![
                    Slot::Residual(l),
                    Slot::Normed(l),
                    Slot::RouteWeights(l),
                    Slot::Balance(l),
                ],
                Segment::Attention(l) => {
                    vec![Slot::Residual(l), Slot::Normed(l), Slot::RouteWeights(l)]
                }
                Segment::FeedForward(l) | Segment::Merge(l) => vec![self.output(l)],
                Segment::Shared(l) => vec![Slot::SharedOut(l)],
                Segment::Experts(l) => vec![Slot::ExpertRows(l)],
                Segment::FinalNorm => vec![Slot::Final],
                Segment::MtpInput(l) => vec![Slot::Hidden(l)],
                Segment::MtpNorm(l) => vec![Slot::MtpFinal(l)],
                Segment::Head(_) => vec![],
            },
        }
    }

    /// Operations that read `slot`, in forward order. The slot's gradient is the sum of their contributions in exactly
    /// this order, whatever the schedule.
    pub fn readers(&self, slot: Slot) -> Vec<Operation> {
        self.forward().into_iter().filter(|&op| self.reads(op).contains(&slot)).collect()
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Segment::Embed => write!(f, "embed"),
            Segment::Attention(l) => write!(f, "attention.{l}"),
            Segment::FeedForward(l) => write!(f, "feed_forward.{l}"),
            Segment::Shared(l) => write!(f, "shared.{l}"),
            Segment::Experts(l) => write!(f, "experts.{l}"),
            Segment::Merge(l) => write!(f, "merge.{l}"),
            Segment::FinalNorm => write!(f, "final_norm"),
            Segment::MtpInput(l) => write!(f, "mtp_input.{l}"),
            Segment::MtpNorm(l) => write!(f, "mtp_norm.{l}"),
            Segment::Head(k) => write!(f, "head.{k}"),
        }
    }
}
