//! Rows between tokens and experts: what the instructions `Dispatch` and `Combine` do, forward and backward.

use crate::Result;
use crate::micro::Micro;
use lampyris_plan::program::Pass;
use lampyris_plan::segments::{Operation, Slot};

/// Rows from tokens to experts; backward, row gradients back to their tokens.
pub fn dispatch(micro: &mut Micro, layer: usize, pass: Pass) -> Result<()> {
    let operation = Operation::Dispatch(layer);
    match pass {
        Pass::Forward => {
            let inputs = micro.read(operation);
            let routing = micro.routing(layer).expect("the gate ran before dispatch");
            let (rows, weights) = routing.dispatch(&inputs[0], &inputs[1])?;
            let blocks = routing.blocks();
            micro.set_blocks(layer, blocks);
            micro.write(operation, vec![rows, weights]);
        }
        Pass::Backward => {
            let rows = micro.gradient(Slot::Rows(layer)).expect("experts give row gradients");
            let weights = micro.gradient(Slot::RowWeights(layer));
            let weights = weights.expect("experts give weight gradients");
            let routing = micro.routing(layer).expect("the gate ran before dispatch");
            let (tokens, weights) = routing.dispatch_backward(&rows, &weights)?;
            micro.contribute(operation, vec![Some(tokens), Some(weights)]);
        }
    }
    Ok(())
}

/// Rows from experts back to their tokens; backward, token gradients to the rows of the experts.
pub fn combine(micro: &mut Micro, layer: usize, pass: Pass) -> Result<()> {
    let operation = Operation::Combine(layer);
    match pass {
        Pass::Forward => {
            let rows = micro.read(operation).remove(0);
            let routing = micro.routing(layer).expect("the gate ran before combine");
            let tokens = routing.combine(&rows)?;
            micro.write(operation, vec![tokens]);
        }
        Pass::Backward => {
            let tokens = micro.gradient(Slot::Routed(layer)).expect("merge gives it a gradient");
            let routing = micro.routing(layer).expect("the gate ran before combine");
            let rows = routing.combine_backward(&tokens)?;
            micro.contribute(operation, vec![Some(rows)]);
        }
    }
    Ok(())
}
