//! Between a rank's buckets and checkpoints in global coordinates.

use crate::flat::copy_in;
use crate::ranks::Ranks;
use crate::state::{BucketState, Progress, State};
use anyhow::{Context, Result};
use lampyris_checkpoint::tensors::{TensorEntry, kept, split};
use lampyris_checkpoint::{Buffers, Destination, Error, Kind, Reader, Request, Slot, Transfer};
use lampyris_plan::share::intersection;
use lampyris_plan::{Inventory, Parameter};
use lampyris_torch::dim;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use tch::Tensor;

/// The arrays of a bucket's owned elements that checkpoints keep, in the order of [`kept`].
fn arrays(bucket: &BucketState) -> impl Iterator<Item = &Tensor> {
    [&bucket.master, &bucket.exp_avg].into_iter().chain(&bucket.exp_avg_sq)
}

/// Where each piece of this rank lies in the buffers that [`copy_out`] fills: of each bucket those of [`arrays`], each of
/// this rank's shard, then, on the first rank, one per gate.
pub fn slots(state: &State, inventory: &Inventory, ranks: &Ranks) -> Arc<[Slot]> {
    let mut slots = Vec::new();
    let mut first = 0;
    for (bucket, array) in state.buckets.buckets.iter().zip(&state.arrays) {
        let shard = array.shard.clone();
        for placement in &bucket.placements {
            let parameter = &inventory.parameters[placement.parameter];
            let part =
                intersection(&(placement.offset..placement.offset + placement.elements), &shard);
            if part.is_empty() {
                continue;
            }
            let within = part.start - placement.offset..part.end - placement.offset;
            for (k, &kind) in kept(parameter).iter().enumerate() {
                for range in split(parameter, within.clone()) {
                    let start = placement.offset + range.within.start - shard.start;
                    slots.push(Slot {
                        tensor: range.tensor.to_string(),
                        kind,
                        start: range.start,
                        buffer: first + k,
                        range: start..start + range.within.len(),
                    });
                }
            }
        }
        first += arrays(array).count();
    }
    let buffers = inventory.buffers.iter().enumerate().filter(|_| ranks.is_first());
    slots.extend(buffers.map(|(i, buffer)| Slot {
        tensor: buffer.hf_name.clone(),
        kind: Kind::GateBias,
        start: 0,
        buffer: first + i,
        range: 0..buffer.shape[0],
    }));
    slots.into()
}

/// Copies this rank's shards into `buffers`; their memory is used again.
pub fn copy_out(state: &State, inventory: &Inventory, buffers: &mut Buffers) -> Result<()> {
    let shards = state
        .arrays
        .iter()
        .flat_map(|array| arrays(array).map(|owned| array.of_owned(owned, &array.shard)));
    let shards: Vec<Tensor> = shards.collect();
    buffers.resize_with(shards.len() + inventory.buffers.len(), Vec::new);
    let (values, biases) = buffers.split_at_mut(shards.len());
    for (gate, buffer) in inventory.buffers.iter().zip(biases) {
        buffer.clone_from(&state.biases[gate.layer]);
    }
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1);
    copy_all(shards.into_iter().zip(values).collect(), threads)
}

/// Copies each tensor into its buffer. One core copies at less than the memory's speed, and training waits for this.
fn copy_all(mut copies: Vec<(Tensor, &mut Vec<f32>)>, threads: usize) -> Result<()> {
    copies.sort_by_key(|(tensor, _)| tensor.numel());
    let mut shares: Vec<(usize, Vec<_>)> = (0..threads).map(|_| (0, Vec::new())).collect();
    // The largest first, each to the thread that has least to do.
    while let Some(copy) = copies.pop() {
        let least = shares.iter_mut().min_by_key(|(elements, _)| *elements);
        let (elements, share) = least.expect("one thread at least");
        *elements += copy.0.numel();
        share.push(copy);
    }
    let work = |share: Vec<(Tensor, &mut Vec<f32>)>| -> Result<()> {
        for (tensor, buffer) in share {
            buffer.resize(tensor.numel(), 0.0);
            tensor.f_copy_data(buffer, tensor.numel())?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let mut shares =
            shares.into_iter().map(|(_, share)| share).filter(|share| !share.is_empty());
        let own = shares.next().unwrap_or_default();
        let helpers: Vec<_> = shares.map(|share| scope.spawn(move || work(share))).collect();
        let mut done = work(own);
        for helper in helpers {
            done = done.and(helper.join().expect("copying does not panic"));
        }
        done
    })
}

/// Refuses a checkpoint whose moments another optimizer left.
fn check_optimizer(inventory: &Inventory, reader: &Reader) -> lampyris_checkpoint::Result<()> {
    let tensors = &reader.manifest().tensors;
    let saved: HashMap<&str, &TensorEntry> =
        tensors.iter().map(|entry| (entry.name.as_str(), entry)).collect();
    for parameter in &inventory.parameters {
        let tensor = parameter.parts[0].hf_name.as_str();
        let Some(entry) = saved.get(tensor) else { continue };
        let (dir, tensor) = (reader.dir().to_path_buf(), tensor.to_string());
        match entry.optimizer() {
            Err(name) => {
                return Err(Error::UnknownOptimizer { dir, tensor, name: name.to_string() });
            }
            Ok(Some(found)) if found != parameter.optimizer => {
                return Err(Error::OtherOptimizer {
                    dir,
                    tensor,
                    found,
                    wanted: parameter.optimizer,
                });
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

/// Elements of an array of the state, as the place where values of a checkpoint go: they are copied from the chunk in which
/// they were read and nowhere else.
struct Place(Tensor);

impl Destination for Place {
    fn elements(&self) -> usize {
        self.0.numel()
    }

    fn split_at(self, count: usize) -> (Place, Place) {
        let later = self.0.narrow(0, dim(count), dim(self.elements() - count));
        (Place(self.0.narrow(0, 0, dim(count))), Place(later))
    }

    fn fill(mut self, values: &[f32]) {
        copy_in(values, &mut self.0);
    }
}

/// Where this rank keeps values of a parameter: elements of the parameter, and the memory for them.
struct Held {
    within: Range<usize>,
    array: Tensor,
}

/// All places where this rank keeps values `kind` of a parameter: for weights what the forward pass reads, and the master
/// weights that it owns where these are not the same memory; for moments what it owns.
fn held(state: &State, parameter: &Parameter, kind: Kind) -> Vec<Held> {
    let (bucket, placement) = state.buckets.place(parameter.id);
    let array = &state.arrays[bucket];
    let whole = placement.offset..placement.offset + placement.elements;
    let owned = intersection(&whole, &array.owned);
    let of_owned = |flat: &Tensor| {
        let within = owned.start - whole.start..owned.end - whole.start;
        Held { within, array: array.of_owned(flat, &owned) }
    };
    let mut held = Vec::new();
    if kind == Kind::Weight {
        let weights = array.weights.tensor.narrow(0, dim(whole.start), dim(whole.len()));
        held.push(Held { within: 0..whole.len(), array: weights });
    }
    if owned.is_empty() {
        return held;
    }
    match kind {
        Kind::Weight if array.has_own_master() => held.push(of_owned(&array.master)),
        Kind::ExpAvg => held.push(of_owned(&array.exp_avg)),
        Kind::ExpAvgSq => held.extend(array.exp_avg_sq.as_ref().map(of_owned)),
        Kind::Weight | Kind::GateBias => {}
    }
    held
}

/// Fills the state from a checkpoint, whatever layout wrote it: all weights of the parameters that this rank holds, and
/// the moments that it owns.
///
/// # Errors
/// The checkpoint is of another model or optimizer, or damaged: the state is then filled in part, and of no use until
/// another checkpoint has filled it.
pub fn load(
    state: &mut State,
    inventory: &Inventory,
    reader: &Reader,
) -> lampyris_checkpoint::Result<()> {
    check_optimizer(inventory, reader)?;
    fill(state, inventory, reader, kept)
}

/// Fills the weights alone, whatever optimizer left them: for generation.
///
/// # Errors
/// As [`load`].
pub fn load_weights(
    state: &mut State,
    inventory: &Inventory,
    reader: &Reader,
) -> lampyris_checkpoint::Result<()> {
    fill(state, inventory, reader, |_| &[Kind::Weight])
}

/// Fills `kinds` of all parameters that this rank holds, and the biases. All ranges are asked for at once: each chunk of the
/// checkpoint is then read once.
fn fill(
    state: &mut State,
    inventory: &Inventory,
    reader: &Reader,
    kinds: impl Fn(&Parameter) -> &'static [Kind],
) -> lampyris_checkpoint::Result<()> {
    let mut requests = Vec::new();
    for parameter in state.held(inventory) {
        for &kind in kinds(parameter) {
            for Held { within, array } in held(state, parameter, kind) {
                for range in split(parameter, within.clone()) {
                    let first = range.within.start - within.start;
                    let out = Place(array.narrow(0, dim(first), dim(range.within.len())));
                    requests.push(Request { tensor: range.tensor, kind, start: range.start, out });
                }
            }
        }
    }
    reader.load(requests, Transfer::default().threads)?;
    for buffer in &inventory.buffers {
        let out = state.biases[buffer.layer].as_mut_slice();
        reader.read(&buffer.hf_name, Kind::GateBias, 0, out)?;
    }
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

#[cfg(test)]
mod tests;
