//! Which values an act takes and makes: the only place that knows. Waits, frees, the checker and the peak of memory follow
//! from it.

use super::{Act, Task, Transfer, Value};
use crate::segments::{Exchange, Graph, Operation, Pass, Segment, Slot};

/// Whether the backward pass of a segment leaves weight gradients in a queue. A head adds its own with the loss; a merge has
/// no weights.
pub(super) fn queues_weights(segment: Segment) -> bool {
    !matches!(segment, Segment::Head(_) | Segment::Merge(_))
}

/// Values that an act takes.
pub(super) fn taken(graph: &Graph, act: Act) -> Vec<Value> {
    let mut out = Vec::new();
    if let Act::Run(Task::Weight { micro, segment, .. }) = act {
        out.push(Value::Queue { micro, segment });
    }
    let Some((micro, operation, pass)) = act.operation() else { return out };
    for slot in graph.takes(operation, pass).into_iter().filter(|slot| !slot.is_loss()) {
        out.push(match pass {
            Pass::Forward => Value::Slot { micro, slot },
            Pass::Backward => Value::Gradient { micro, slot },
        });
    }
    match operation {
        Operation::Exchange(exchange) => out.push(route(micro, exchange)),
        Operation::Segment(segment) if pass == Pass::Backward => {
            out.push(Value::Tape { micro, segment });
        }
        Operation::Segment(_) => {}
    }
    out
}

/// Values that an act makes; of a gradient one reader's contribution. What a transfer brings is made when it is waited for.
pub(crate) fn made(graph: &Graph, act: Act) -> Vec<Value> {
    let Some((micro, Operation::Segment(segment), pass)) = act.operation() else {
        return Vec::new();
    };
    let is_loss = matches!(act, Act::Run(Task::Loss { .. }));
    if pass == Pass::Backward || is_loss {
        let mut out = brought(graph, (micro, Operation::Segment(segment), Pass::Backward));
        if pass == Pass::Backward && queues_weights(segment) {
            out.push(Value::Queue { micro, segment });
        }
        return out;
    }
    let mut out = brought(graph, (micro, Operation::Segment(segment), pass));
    if let Segment::Attention(layer) = segment
        && out.contains(&Value::Slot { micro, slot: Slot::RouteWeights(layer) })
    {
        out.push(Value::Route { micro, layer });
    }
    out.push(Value::Tape { micro, segment });
    out
}

/// Values that are taken when a transfer is waited for.
pub(super) fn taken_by_landing(transfer: Transfer) -> Option<Value> {
    match transfer {
        Transfer::Rows { micro, exchange, .. } => Some(route(micro, exchange)),
        Transfer::Reduce { .. } | Transfer::Gather { .. } => None,
    }
}

/// Values that a transfer brings.
pub(crate) fn made_by_landing(graph: &Graph, transfer: Transfer) -> Vec<Value> {
    match transfer {
        Transfer::Rows { micro, exchange, pass } => {
            brought(graph, (micro, Operation::Exchange(exchange), pass))
        }
        Transfer::Reduce { .. } | Transfer::Gather { .. } => Vec::new(),
    }
}

/// Slots that an operation fills, or to whose gradients it contributes.
fn brought(graph: &Graph, (micro, operation, pass): (usize, Operation, Pass)) -> Vec<Value> {
    let slots = match pass {
        Pass::Forward => graph.writes(operation),
        Pass::Backward => graph.reads(operation),
    };
    let slots = slots.into_iter().filter(|slot| !slot.is_loss());
    slots
        .map(|slot| match pass {
            Pass::Forward => Value::Slot { micro, slot },
            Pass::Backward => Value::Gradient { micro, slot },
        })
        .collect()
}

fn route(micro: usize, exchange: Exchange) -> Value {
    Value::Route { micro, layer: exchange.layer() }
}
