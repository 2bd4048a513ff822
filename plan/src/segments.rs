//! The graph of a micro-batch: compute **segments** and the named **slots** between them (docs/architecture.md, "The
//! heart"). A segment is an autograd island; communication stands between segments, never inside.
//!
//! ```text
//! attention+gate -+-> dispatch -> experts -> combine -+-> merge
//!                 +-> shared expert ------------------+
//!                 +-> residual -----------------------+
//! ```

use crate::model_spec::ModelSpec;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

mod slots;

pub use slots::Slots;

/// A piece of the network that one `forward` call computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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

impl Slot {
    /// Whether the slot is a loss: a scalar that nothing reads, whose gradient is the factor of the loss.
    pub fn is_loss(self) -> bool {
        matches!(self, Slot::Balance(_))
    }
}

/// The segments and exchanges of one network, in forward order.
#[derive(Debug, Clone)]
pub struct Graph {
    layers: usize,
    mtp_layers: usize,
    moe: Vec<bool>,
    shared: bool,
    balance: bool,
    readers: BTreeMap<Slot, Vec<Operation>>,
}

/// An exchange of rows between tokens and experts, by decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Exchange {
    /// Rows from tokens to experts; in the backward pass the gradient of this, rows from experts to tokens.
    Dispatch(usize),
    /// Rows from experts back to tokens; in the backward pass the gradient of this, rows from tokens to experts.
    Combine(usize),
}

impl Exchange {
    /// The decoder layer.
    pub fn layer(self) -> usize {
        match self {
            Exchange::Dispatch(layer) | Exchange::Combine(layer) => layer,
        }
    }
}

/// One operation of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// Compute.
    Segment(Segment),
    /// Rows between tokens and experts.
    Exchange(Exchange),
}

/// Direction in which an operation runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Pass {
    /// Forward pass.
    Forward,
    /// Backward pass.
    Backward,
}

impl Graph {
    /// The graph of `spec`.
    pub fn new(spec: &ModelSpec) -> Graph {
        let mut graph = Graph {
            layers: spec.layers,
            mtp_layers: spec.mtp_layers,
            moe: (0..spec.all_layers()).map(|layer| spec.is_moe_layer(layer)).collect(),
            shared: spec.shared_hidden() > 0,
            balance: spec.moe.as_ref().is_some_and(|moe| moe.balance_loss > 0.0),
            readers: BTreeMap::new(),
        };
        for operation in graph.forward() {
            for slot in graph.reads(operation) {
                graph.readers.entry(slot).or_default().push(operation);
            }
        }
        graph
    }

    /// Prediction depths: 1 for the next token and one per MTP layer.
    pub fn depths(&self) -> usize {
        1 + self.mtp_layers
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
        out.push(Operation::Exchange(Exchange::Dispatch(layer)));
        if self.shared {
            out.push(Operation::Segment(Segment::Shared(layer)));
        }
        out.push(Operation::Segment(Segment::Experts(layer)));
        out.push(Operation::Exchange(Exchange::Combine(layer)));
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
    pub fn reads(&self, operation: Operation) -> Slots {
        use Slot::*;
        match operation {
            Operation::Exchange(Exchange::Dispatch(l)) => [Normed(l), RouteWeights(l)].into(),
            Operation::Exchange(Exchange::Combine(l)) => [ExpertRows(l)].into(),
            Operation::Segment(segment) => match segment {
                Segment::Embed => [].into(),
                Segment::Attention(l) => [Hidden(l)].into(),
                Segment::FeedForward(l) => [Residual(l), Normed(l)].into(),
                Segment::Shared(l) => [Normed(l)].into(),
                Segment::Experts(l) => [Rows(l), RowWeights(l)].into(),
                Segment::Merge(l) if self.shared => [Residual(l), SharedOut(l), Routed(l)].into(),
                Segment::Merge(l) => [Residual(l), Routed(l)].into(),
                Segment::FinalNorm => [Trunk].into(),
                Segment::MtpInput(l) if l == self.layers => [Final].into(),
                Segment::MtpInput(l) => [MtpFinal(l - 1)].into(),
                Segment::MtpNorm(l) => [MtpOut(l)].into(),
                Segment::Head(0) => [Final].into(),
                Segment::Head(k) => [MtpFinal(self.layers + k - 1)].into(),
            },
        }
    }

    /// Slots that an operation writes, in the order in which the model returns them.
    pub fn writes(&self, operation: Operation) -> Slots {
        use Slot::*;
        match operation {
            Operation::Exchange(Exchange::Dispatch(l)) => [Rows(l), RowWeights(l)].into(),
            Operation::Exchange(Exchange::Combine(l)) => [Routed(l)].into(),
            Operation::Segment(segment) => match segment {
                Segment::Embed if self.layers == 0 => [Trunk].into(),
                Segment::Embed => [Hidden(0)].into(),
                Segment::Attention(l) if !self.moe[l] => [Residual(l), Normed(l)].into(),
                Segment::Attention(l) if self.balance => {
                    [Residual(l), Normed(l), RouteWeights(l), Balance(l)].into()
                }
                Segment::Attention(l) => [Residual(l), Normed(l), RouteWeights(l)].into(),
                Segment::FeedForward(l) | Segment::Merge(l) => [self.output(l)].into(),
                Segment::Shared(l) => [SharedOut(l)].into(),
                Segment::Experts(l) => [ExpertRows(l)].into(),
                Segment::FinalNorm => [Final].into(),
                Segment::MtpInput(l) => [Hidden(l)].into(),
                Segment::MtpNorm(l) => [MtpFinal(l)].into(),
                Segment::Head(_) => [].into(),
            },
        }
    }

    /// Operations that read `slot`, in forward order. The slot's gradient is the sum of their contributions in exactly
    /// this order, whatever the schedule.
    pub fn readers(&self, slot: Slot) -> &[Operation] {
        self.readers.get(&slot).map_or(&[], Vec::as_slice)
    }

    /// Slots whose values, or in the backward pass gradients, `operation` takes.
    pub fn takes(&self, operation: Operation, pass: Pass) -> Slots {
        match pass {
            Pass::Forward => self.reads(operation),
            Pass::Backward => self.writes(operation),
        }
    }

    /// Whether `operation` takes what `exchange` brings in this pass, so that it has to wait for its rows.
    pub fn feeds(&self, exchange: Exchange, operation: Operation, pass: Pass) -> bool {
        let exchange = Operation::Exchange(exchange);
        let brought = match pass {
            Pass::Forward => self.writes(exchange),
            Pass::Backward => self.reads(exchange),
        };
        let taken = self.takes(operation, pass);
        exchange != operation && brought.iter().any(|slot| taken.contains(slot))
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

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exchange::Dispatch(l) => write!(f, "dispatch.{l}"),
            Exchange::Combine(l) => write!(f, "combine.{l}"),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Operation::Segment(segment) => segment.fmt(f),
            Operation::Exchange(exchange) => exchange.fmt(f),
        }
    }
}
