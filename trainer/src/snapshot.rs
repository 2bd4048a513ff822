//! Between a rank's buckets and checkpoints in global coordinates.

use crate::ranks::Ranks;
use crate::state::{BucketState, Progress, State};
use anyhow::{Context, Result};
use lampyris_checkpoint::tensors::{kept, split};
use lampyris_checkpoint::{Buffers, Error, Kind, Reader, Request, Slot, Transfer};
use lampyris_plan::inventory::Optimizer;
use lampyris_plan::share::intersection;
use lampyris_plan::{Inventory, Parameter};
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

/// A piece of a parameter that this rank needs.
struct Wanted<'a> {
    parameter: &'a Parameter,
    kind: Kind,
    /// Elements of the parameter.
    within: Range<usize>,
    values: Vec<f32>,
}

/// Refuses a checkpoint whose moments another optimizer left.
fn check_optimizer(inventory: &Inventory, reader: &Reader) -> lampyris_checkpoint::Result<()> {
    let saved: HashMap<&str, Optimizer> = reader
        .manifest()
        .tensors
        .iter()
        .filter_map(|entry| Some((entry.name.as_str(), entry.optimizer()?)))
        .collect();
    for parameter in &inventory.parameters {
        let (tensor, wanted) = (&parameter.parts[0].hf_name, parameter.optimizer);
        match saved.get(tensor.as_str()) {
            Some(&found) if found != wanted => {
                let (dir, tensor) = (reader.dir().to_path_buf(), tensor.clone());
                return Err(Error::OtherOptimizer { dir, tensor, found, wanted });
            }
            _ => {}
        }
    }
    Ok(())
}

/// Fills the state from a checkpoint, whatever layout wrote it: all weights of the parameters that this rank holds, and
/// the moments that it owns. All ranges are asked for at once: each chunk of the checkpoint is then read once.
pub fn load(
    state: &mut State,
    inventory: &Inventory,
    reader: &Reader,
) -> lampyris_checkpoint::Result<()> {
    check_optimizer(inventory, reader)?;
    let mut wanted: Vec<Wanted<'_>> = Vec::new();
    for parameter in state.held(inventory) {
        let (bucket, placement) = state.buckets.place(parameter.id);
        let whole = placement.offset..placement.offset + placement.elements;
        let owned = intersection(&whole, &state.arrays[bucket].owned);
        for &kind in kept(parameter) {
            let part = if kind == Kind::Weight { &whole } else { &owned };
            if !part.is_empty() {
                let within = part.start - whole.start..part.end - whole.start;
                let values = vec![0f32; within.len()];
                wanted.push(Wanted { parameter, kind, within, values });
            }
        }
    }
    let mut requests = Vec::new();
    for Wanted { parameter, kind, within, values } in &mut wanted {
        let mut rest = values.as_mut_slice();
        for range in split(parameter, within.clone()) {
            let (out, tail) = rest.split_at_mut(range.within.len());
            rest = tail;
            requests.push(Request { tensor: range.tensor, kind: *kind, start: range.start, out });
        }
    }
    reader.load(requests, Transfer::default().threads)?;
    for Wanted { parameter, kind, within, values } in &wanted {
        let (bucket, placement) = state.buckets.place(parameter.id);
        let array = &state.arrays[bucket];
        let moments = match kind {
            Kind::ExpAvg => Some(&array.exp_avg),
            Kind::ExpAvgSq => array.exp_avg_sq.as_ref(),
            Kind::Weight | Kind::GateBias => {
                state.set_weights(parameter, values);
                continue;
            }
        };
        let owned = placement.offset + within.start..placement.offset + within.end;
        let moments = moments.expect("asked for what the bucket has");
        array.of_owned(moments, &owned).copy_(&Tensor::from_slice(values));
    }
    for buffer in &inventory.buffers {
        let out = &mut state.biases[buffer.layer];
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
        state.set_weights(parameter, &values);
    }
    for buffer in &inventory.buffers {
        reader.read(&buffer.hf_name, Kind::GateBias, 0, &mut state.biases[buffer.layer])?;
    }
    Ok(())
}
