//! Where each (token, slot) goes: rows sorted by expert, in token order inside an expert, padded per expert so that a
//! matrix product's bits do not depend on how many rows share its block (docs/architecture.md, "Canonical reduction").

use crate::Result;
use lampyris_plan::model_spec::Moe;
use lampyris_torch::{dim, ops};
use tch::{Device, Tensor};

/// Rows of experts as consecutive blocks, one per (expert, source of its tokens): block `b` belongs to expert
/// `first + b / sources` and holds rows of source `b % sources`. A block is what one micro-batch of one rank sends to one
/// expert, so that the products over it, its weight gradient included, do not know how many ranks there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocks {
    /// Rows of block b: `offsets[b]..offsets[b + 1]`, padding included.
    pub offsets: Vec<i64>,
    /// First expert that has rows here.
    pub first: usize,
    /// Blocks of each expert.
    pub sources: usize,
}

impl Blocks {
    /// The (expert, source) of every block, in order.
    pub fn owners(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let owner = |b: usize| (self.first + b / self.sources, b % self.sources);
        (0..self.offsets.len() - 1).map(owner)
    }
}

/// The permutation between the tokens of a micro-batch and the rows of its experts: made once by the forward dispatch,
/// used by combine and by both backward passes.
#[derive(Debug)]
pub struct Routing {
    /// Rows of expert e: `offsets[e]..offsets[e + 1]`, padding included.
    offsets: Vec<i64>,
    /// Tokens routed to each expert.
    pub counts: Vec<u64>,
    /// Expert of each (token, slot), flat.
    chosen: Vec<u32>,
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
    /// Routing of `experts` `[T, K]` (expert of each slot) to experts of this rank; every expert's rows are padded to a
    /// multiple of `pad`.
    pub fn new(experts: &[i64], moe: &Moe, pad: usize, device: Device) -> Routing {
        let counts = count(experts, moe);
        let mut offsets = vec![0i64; moe.experts + 1];
        for (e, &count) in counts.iter().enumerate() {
            let rows = (count as usize).next_multiple_of(pad);
            offsets[e + 1] = offsets[e] + dim(rows);
        }
        let mut next: Vec<i64> = offsets.clone();
        let place = |&expert: &i64| {
            next[index(expert)] += 1;
            next[index(expert)] - 1
        };
        let slot_row: Vec<i64> = experts.iter().map(place).collect();
        Routing::with_rows(experts, moe, (offsets, counts, &slot_row), device)
    }

    /// Routing of `experts` `[T, K]` to experts of several ranks, seen by the rank of the tokens: its rows come home in
    /// order of (token, slot), without padding.
    pub fn remote(experts: &[i64], moe: &Moe, device: Device) -> Routing {
        let slot_row: Vec<i64> = (0..dim(experts.len())).collect();
        let offsets = vec![0, dim(experts.len())];
        Routing::with_rows(experts, moe, (offsets, count(experts, moe), &slot_row), device)
    }

    /// Row `slot_row[slot]` belongs to (token, slot).
    fn with_rows(
        experts: &[i64],
        moe: &Moe,
        (offsets, counts, slot_row): (Vec<i64>, Vec<u64>, &[i64]),
        device: Device,
    ) -> Routing {
        let k = moe.experts_per_token;
        let rows = index(*offsets.last().expect("offsets begin with 0"));
        let (mut source, mut source_slot) = (vec![-1i64; rows], vec![-1i64; rows]);
        for (slot, &row) in slot_row.iter().enumerate() {
            source[index(row)] = dim(slot / k);
            source_slot[index(row)] = dim(slot);
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
            chosen: experts.iter().map(|&e| u32::try_from(e).expect("few experts")).collect(),
            source: flat(&source),
            source_slot: flat(&source_slot),
            position: table(&position),
            group: table(&group),
            slot_row: table(slot_row),
        }
    }

    /// The expert of each (token, slot), flat, and the slots of a token.
    pub fn chosen(&self) -> (&[u32], usize) {
        let slots = *self.position.size().last().expect("a table has two dimensions");
        (&self.chosen, index(slots))
    }

    /// The rows of [`Routing::new`] by expert.
    pub fn blocks(&self) -> Blocks {
        Blocks { offsets: self.offsets.clone(), first: 0, sources: 1 }
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

/// Tokens per expert.
fn count(experts: &[i64], moe: &Moe) -> Vec<u64> {
    let mut counts = vec![0u64; moe.experts];
    for &expert in experts {
        counts[index(expert)] += 1;
    }
    counts
}

fn index(value: i64) -> usize {
    usize::try_from(value).expect("experts and rows are not negative")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{Random, deepseek, distance};
    use tch::Kind;

    const HIDDEN: i64 = 5;

    /// Distinct experts for each of `tokens` tokens, in no order.
    fn choose(random: &mut Random, tokens: usize, moe: &Moe) -> Vec<i64> {
        let mut out = Vec::new();
        for _ in 0..tokens {
            let mut left: Vec<usize> = (0..moe.experts).collect();
            for _ in 0..moe.experts_per_token {
                out.push(dim(left.remove(random.below(left.len()))));
            }
        }
        out
    }

    fn moes() -> Vec<Moe> {
        let base = deepseek().moe.unwrap();
        let sizes = [(8, 4, 3), (8, 1, 1), (2, 1, 2), (16, 4, 6), (64, 8, 8)];
        sizes
            .map(|(experts, groups, experts_per_token)| Moe {
                experts,
                groups,
                experts_per_token,
                ..base.clone()
            })
            .into()
    }

    /// A stand-in for an expert: its number as a factor, and the row's routing weight.
    fn apply(routing: &Routing, rows: &Tensor, weights: &Tensor) -> Tensor {
        let each = |e: usize| {
            let (first, end) = (routing.offsets[e], routing.offsets[e + 1]);
            rows.narrow(0, first, end - first) * (e as f64 + 1.0)
        };
        let all: Vec<Tensor> = (0..routing.counts.len()).map(each).collect();
        Tensor::cat(&all, 0) * weights.unsqueeze(1)
    }

    /// Every expert over all tokens, times its weight where it was chosen.
    fn masked_loop(experts: &[i64], moe: &Moe, x: &Tensor, weights: &Tensor) -> Tensor {
        let k = moe.experts_per_token;
        let out = x.zeros_like();
        for expert in 0..moe.experts {
            for (slot, _) in experts.iter().enumerate().filter(|(_, e)| index(**e) == expert) {
                let (token, at) = (dim(slot / k), dim(slot % k));
                let mut row = out.get(token);
                row += x.get(token) * (expert as f64 + 1.0) * weights.double_value(&[token, at]);
            }
        }
        out
    }

    #[test]
    fn dispatch_experts_combine_equals_a_masked_loop() {
        let mut random = Random::new(3);
        for moe in moes() {
            for (tokens, pad) in [(1, 1), (1, 32), (23, 1), (23, 4), (40, 32)] {
                let experts = choose(&mut random, tokens, &moe);
                let routing = Routing::new(&experts, &moe, pad, Device::Cpu);
                let x = random.tensor(&[dim(tokens), HIDDEN]);
                let weights = random.tensor(&[dim(tokens), dim(moe.experts_per_token)]);
                let want = masked_loop(&experts, &moe, &x, &weights);
                let (rows, row_weights) = routing
                    .dispatch(&x.to_kind(Kind::Float), &weights.to_kind(Kind::Float))
                    .unwrap();
                let got = routing.combine(&apply(&routing, &rows, &row_weights)).unwrap();
                assert!(distance(&got, &want) < 1e-6, "{moe:?} {tokens} {pad}");
            }
        }
    }

    #[test]
    fn rows_stand_by_expert_in_token_order_and_padding_is_zero() {
        let mut random = Random::new(4);
        for (moe, pad) in moes().into_iter().zip([1, 2, 32, 64, 3]) {
            let experts = choose(&mut random, 30, &moe);
            let routing = Routing::new(&experts, &moe, pad, Device::Cpu);
            // A token's row holds its number.
            let x = Tensor::arange_start(1, 31, (Kind::Float, Device::Cpu)).unsqueeze(1);
            let shape = [30, dim(moe.experts_per_token)];
            let ones = Tensor::ones(shape, (Kind::Float, Device::Cpu));
            let (rows, weights) = routing.dispatch(&x, &ones).unwrap();
            let rows = Vec::<f32>::try_from(rows.flatten(0, -1)).unwrap();
            let weights = Vec::<f32>::try_from(weights).unwrap();
            assert_eq!(routing.counts.iter().sum::<u64>(), experts.len() as u64);
            for expert in 0..moe.experts {
                let block = index(routing.offsets[expert])..index(routing.offsets[expert + 1]);
                let users = experts.chunks_exact(moe.experts_per_token).zip(1u8..);
                let mut want: Vec<f32> = users
                    .filter(|(chosen, _)| chosen.contains(&dim(expert)))
                    .map(|(_, token)| f32::from(token))
                    .collect();
                assert_eq!(routing.counts[expert], want.len() as u64);
                want.resize(want.len().next_multiple_of(pad), 0.0);
                assert_eq!(rows[block.clone()], want[..]);
                let filled: Vec<f32> = want.iter().map(|x| x.min(1.0)).collect();
                assert_eq!(weights[block], filled[..]);
            }
        }
    }

    /// fp32 sums per token in the order (routing group, top-k slot), partial sums inside a group.
    #[test]
    fn combine_adds_in_the_canonical_order_whatever_stands_in_the_padding() {
        let mut random = Random::new(5);
        for moe in moes() {
            let (k, size) = (moe.experts_per_token, moe.experts / moe.groups);
            let experts = choose(&mut random, 20, &moe);
            let routing = Routing::new(&experts, &moe, 8, Device::Cpu);
            let rows = random.tensor(&[routing.offsets[moe.experts], 1]).to_kind(Kind::Float);
            let padding = routing.source.lt(0).unsqueeze(1);
            let broken = rows.masked_fill(&padding, f64::NAN);
            let got =
                Vec::<f32>::try_from(routing.combine(&broken).unwrap().flatten(0, -1)).unwrap();
            let values = Vec::<f32>::try_from(rows.flatten(0, -1)).unwrap();
            let mut next = routing.offsets.clone();
            let mut slot_values = Vec::new();
            for &expert in &experts {
                slot_values.push(values[index(next[index(expert)])]);
                next[index(expert)] += 1;
            }
            for (token, got) in got.into_iter().enumerate() {
                let slots = token * k..(token + 1) * k;
                let mut total = 0f32;
                for group in 0..moe.groups {
                    let inside = slots.clone().filter(|&s| index(experts[s]) / size == group);
                    let parts: Vec<f32> = inside.map(|s| slot_values[s]).collect();
                    if !parts.is_empty() {
                        total += parts.iter().fold(0f32, |sum, part| sum + part);
                    }
                }
                assert_eq!(got.to_bits(), total.to_bits(), "{moe:?} token {token}");
            }
        }
    }

    /// Rows that come home in order of (token, slot) are added as rows that never left.
    #[test]
    fn rows_from_other_ranks_are_added_with_the_same_bits() {
        let mut random = Random::new(7);
        for moe in moes() {
            let experts = choose(&mut random, 20, &moe);
            let here = Routing::new(&experts, &moe, 8, Device::Cpu);
            let remote = Routing::remote(&experts, &moe, Device::Cpu);
            assert_eq!(here.counts, remote.counts);
            let rows = random.tensor(&[here.offsets[moe.experts], HIDDEN]).to_kind(Kind::Float);
            let weights = random.tensor(&[here.offsets[moe.experts]]).to_kind(Kind::Float);
            let home = here.slot_row.flatten(0, -1);
            let (home_rows, home_weights) =
                (rows.index_select(0, &home), weights.index_select(0, &home));
            assert_eq!(here.combine(&rows).unwrap(), remote.combine(&home_rows).unwrap());
            let want = here.dispatch_backward(&rows, &weights).unwrap();
            assert_eq!(want, remote.dispatch_backward(&home_rows, &home_weights).unwrap());
        }
    }

    #[test]
    fn blocks_stand_by_expert_and_source() {
        let blocks = Blocks { offsets: vec![0, 4, 4, 8, 8], first: 2, sources: 2 };
        assert_eq!(blocks.owners().collect::<Vec<_>>(), [(2, 0), (2, 1), (3, 0), (3, 1)]);
    }

    /// Backward passes are the transposes of the forward ones: <f(x), y> = <x, f'(y)>.
    #[test]
    fn backward_is_the_transpose() {
        let mut random = Random::new(6);
        let dot = |a: &Tensor, b: &Tensor| (a * b).sum(Kind::Double).double_value(&[]);
        for moe in moes() {
            let experts = choose(&mut random, 25, &moe);
            let routing = Routing::new(&experts, &moe, 4, Device::Cpu);
            let rows = routing.offsets[moe.experts];
            let mut float = |shape: &[i64]| random.tensor(shape).to_kind(Kind::Float);
            let (x, w) = (float(&[25, HIDDEN]), float(&[25, dim(moe.experts_per_token)]));
            let (dx, dw) = (float(&[rows, HIDDEN]), float(&[rows]));
            let (sent, sent_weights) = routing.dispatch(&x, &w).unwrap();
            let (back, back_weights) = routing.dispatch_backward(&dx, &dw).unwrap();
            let forward = dot(&sent, &dx) + dot(&sent_weights, &dw);
            assert!((forward - dot(&x, &back) - dot(&w, &back_weights)).abs() < 1e-4);
            let out = float(&[25, HIDDEN]);
            let forward = dot(&routing.combine(&dx).unwrap(), &out);
            assert!((forward - dot(&dx, &routing.combine_backward(&out).unwrap())).abs() < 1e-4);
        }
    }
}
