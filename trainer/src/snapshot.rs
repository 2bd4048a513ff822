//! Between a rank's buckets and checkpoints in global coordinates.

use crate::state::{Progress, State};
use anyhow::{Context, Result};
use lampyris_checkpoint::tensors::{TensorEntry, split, tensor_list};
use lampyris_checkpoint::{Buffers, Kind, Reader, Request, Slot};
use lampyris_plan::Inventory;
use lampyris_torch::dim;
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;
use tch::Tensor;

/// Kinds kept of every trained tensor.
const KINDS: [Kind; 3] = [Kind::Weight, Kind::ExpAvg, Kind::ExpAvgSq];

/// Every tensor of a training checkpoint.
pub fn tensors(inventory: &Inventory) -> Vec<TensorEntry> {
    tensor_list(inventory, &KINDS)
}

/// Where each piece lies in the buffers that [`copy_out`] fills: three buffers per bucket, then one per gate.
pub fn slots(state: &State, inventory: &Inventory) -> Arc<[Slot]> {
    let mut slots = Vec::new();
    for parameter in &inventory.parameters {
        let (bucket, placement) = state.buckets.place(parameter.id);
        for (k, &kind) in KINDS.iter().enumerate() {
            for range in split(parameter, 0..parameter.elements()) {
                let start = placement.offset + range.within.start;
                slots.push(Slot {
                    tensor: range.tensor.to_string(),
                    kind,
                    start: range.start,
                    buffer: bucket * KINDS.len() + k,
                    range: start..start + range.within.len(),
                });
            }
        }
    }
    let gates = state.buckets.buckets.len() * KINDS.len();
    for (i, buffer) in inventory.buffers.iter().enumerate() {
        slots.push(Slot {
            tensor: buffer.hf_name.clone(),
            kind: Kind::GateBias,
            start: 0,
            buffer: gates + i,
            range: 0..buffer.shape[0],
        });
    }
    slots.into()
}

/// Copies the state into `buffers`; their memory is used again.
pub fn copy_out(state: &State, inventory: &Inventory, buffers: &mut Buffers) -> Result<()> {
    let flat = state.arrays.iter().flat_map(|a| [&a.master, &a.exp_avg, &a.exp_avg_sq]);
    let flat: Vec<&Tensor> = flat.collect();
    buffers.resize_with(flat.len() + inventory.buffers.len(), Vec::new);
    for (tensor, buffer) in flat.iter().zip(buffers.iter_mut()) {
        buffer.resize(tensor.numel(), 0.0);
        tensor.f_copy_data(buffer, tensor.numel())?;
    }
    for (gate, buffer) in inventory.buffers.iter().zip(&mut buffers[flat.len()..]) {
        buffer.clone_from(&state.biases[gate.layer]);
    }
    Ok(())
}

/// Fills the state from a checkpoint, whatever layout wrote it. All ranges are asked for at once: each chunk of the
/// checkpoint is then read once.
pub fn load(
    state: &mut State,
    inventory: &Inventory,
    reader: &Reader,
) -> lampyris_checkpoint::Result<()> {
    let parameters = || inventory.parameters.iter().flat_map(|p| KINDS.map(|kind| (p, kind)));
    let mut values: Vec<Vec<f32>> = parameters().map(|(p, _)| vec![0f32; p.elements()]).collect();
    let mut requests = Vec::new();
    for ((parameter, kind), values) in parameters().zip(&mut values) {
        let mut rest = values.as_mut_slice();
        for range in split(parameter, 0..parameter.elements()) {
            let (out, tail) = rest.split_at_mut(range.within.len());
            rest = tail;
            requests.push(Request { tensor: range.tensor, kind, start: range.start, out });
        }
    }
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(4));
    reader.load(requests, threads)?;
    for ((parameter, kind), values) in parameters().zip(&values) {
        let (bucket, placement) = state.buckets.place(parameter.id);
        let array = &state.arrays[bucket];
        let flat = match kind {
            Kind::ExpAvg => &array.exp_avg,
            Kind::ExpAvgSq => &array.exp_avg_sq,
            Kind::Weight | Kind::GateBias => &array.master,
        };
        let (first, len) = (dim(placement.offset), dim(placement.elements));
        flat.narrow(0, first, len).copy_(&Tensor::from_slice(values));
    }
    for buffer in &inventory.buffers {
        let out = &mut state.biases[buffer.layer];
        reader.read(&buffer.hf_name, Kind::GateBias, 0, out)?;
    }
    state.refresh_copies();
    Ok(())
}

/// Progress as the manifest's small state.
pub fn progress_to_state(progress: Progress) -> BTreeMap<String, Value> {
    match serde_json::to_value(progress) {
        Ok(Value::Object(map)) => map.into_iter().collect(),
        _ => unreachable!("progress is a struct of numbers"),
    }
}

/// And back.
pub fn progress_from_state(state: &BTreeMap<String, Value>) -> Result<Progress> {
    let map = state.clone().into_iter().collect();
    serde_json::from_value(Value::Object(map)).context("the manifest's state is not a progress")
}

/// Whole-parameter fill from a checkpoint's weights only: for generation and evaluation.
pub fn load_weights(
    state: &mut State,
    inventory: &Inventory,
    reader: &Reader,
) -> lampyris_checkpoint::Result<()> {
    for parameter in &inventory.parameters {
        let mut values = vec![0f32; parameter.elements()];
        for range in split(parameter, 0..parameter.elements()) {
            reader.read(range.tensor, Kind::Weight, range.start, &mut values[range.within])?;
        }
        state.set_master(parameter, &values);
    }
    for buffer in &inventory.buffers {
        reader.read(&buffer.hf_name, Kind::GateBias, 0, &mut state.biases[buffer.layer])?;
    }
    state.refresh_copies();
    Ok(())
}
