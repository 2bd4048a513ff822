//! Where each (token, slot) goes: rows sorted by expert, in token order inside an expert, padded per expert so that a
//! matrix product's bits do not depend on how many rows share its block (docs/architecture.md, "Canonical reduction").

use crate::Result;
use lampyris_plan::model_spec::Moe;
use lampyris_torch::{dim, ops};
use tch::{Device, Tensor};

/// The permutation between the tokens of a micro-batch and the rows of its experts: made once by the forward dispatch,
/// used by combine and by both backward passes.
#[derive(Debug)]
pub struct Routing {
    /// Rows of expert e: `offsets[e]..offsets[e + 1]`, padding included.
    pub offsets: Vec<i64>,
    /// Tokens routed to each expert.
    pub counts: Vec<u64>,
    /// i64 `[rows]`: token of each row, -1 for padding.
    source: Tensor,
    /// i64 `[rows]`: flat (token, slot) of each row, -1 for padding.
    source_slot: Tensor,
    /// i64 `[T, K]`: row of each (token, slot), slots in order of (routing group, top-k slot).
    position: Tensor,
    /// i64 `[T, K]`: routing group of that slot.
    group: Tensor,
    /// i64 `[T, K]`: row of each (token, slot) in top-k order.
    slot_row: Tensor,
}

impl Routing {
    /// Routing of `experts` `[T, K]` (expert of each slot); every expert's rows are padded to a multiple of `pad`.
    pub fn new(experts: &[i64], moe: &Moe, pad: usize, device: Device) -> Routing {
        let k = moe.experts_per_token;
        let mut counts = vec![0u64; moe.experts];
        for &expert in experts {
            counts[index(expert)] += 1;
        }
        let mut offsets = vec![0i64; moe.experts + 1];
        for (e, &count) in counts.iter().enumerate() {
            let rows = (count as usize).next_multiple_of(pad);
            offsets[e + 1] = offsets[e] + dim(rows);
        }
        let rows = index(offsets[moe.experts]);
        let mut next: Vec<i64> = offsets.clone();
        let (mut source, mut source_slot) = (vec![-1i64; rows], vec![-1i64; rows]);
        let mut slot_row = vec![0i64; experts.len()];
        for (slot, &expert) in experts.iter().enumerate() {
            let row = next[index(expert)];
            next[index(expert)] += 1;
            source[index(row)] = dim(slot / k);
            source_slot[index(row)] = dim(slot);
            slot_row[slot] = row;
        }
        let size = dim(moe.experts / moe.groups);
        let (mut position, mut group) = (Vec::new(), Vec::new());
        for (token, chosen) in experts.chunks_exact(k).enumerate() {
            let mut order: Vec<usize> = (0..k).collect();
            order.sort_by_key(|&slot| chosen[slot] / size); // stable: top-k order inside a group
            position.extend(order.iter().map(|&slot| slot_row[token * k + slot]));
            group.extend(order.iter().map(|&slot| chosen[slot] / size));
        }
        let flat = |values: &[i64]| Tensor::from_slice(values).to(device);
        let table = |values: &[i64]| flat(values).view([-1, dim(k)]);
        Routing {
            offsets,
            counts,
            source: flat(&source),
            source_slot: flat(&source_slot),
            position: table(&position),
            group: table(&group),
            slot_row: table(&slot_row),
        }
    }

    /// Forward of dispatch: tokens `[T, d]` and weights `[T, K]` -> rows `[rows, d]` and row weights `[rows]`.
    pub fn dispatch(&self, tokens: &Tensor, weights: &Tensor) -> Result<(Tensor, Tensor)> {
        let weights = ops::gather_rows(&weights.reshape([-1, 1]), &self.source_slot)?;
        Ok((ops::gather_rows(tokens, &self.source)?, weights.flatten(0, -1)))
    }

    /// Backward of dispatch: row gradients -> token gradients (a combine) and weight gradients `[T, K]`.
    pub fn dispatch_backward(&self, rows: &Tensor, weights: &Tensor) -> Result<(Tensor, Tensor)> {
        let picked = weights.index_select(0, &self.slot_row.flatten(0, -1));
        Ok((self.combine(rows)?, picked.view_as(&self.slot_row)))
    }

    /// Forward of combine: rows `[rows, d]` -> their sum per token `[T, d]`.
    pub fn combine(&self, rows: &Tensor) -> Result<Tensor> {
        Ok(ops::sum_rows(rows, &self.position, &self.group)?)
    }

    /// Backward of combine: token gradients -> row gradients (a dispatch).
    pub fn combine_backward(&self, tokens: &Tensor) -> Result<Tensor> {
        Ok(ops::gather_rows(tokens, &self.source)?)
    }
}

fn index(value: i64) -> usize {
    usize::try_from(value).expect("experts and rows are not negative")
}
