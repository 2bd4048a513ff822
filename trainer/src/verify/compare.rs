//! The first difference between what one rank found and what the ranks of a layout found.

use super::world::{Observation, Piece, What};
use lampyris_plan::Inventory;
use lampyris_plan::inventory::{Group, ParameterId};
use serde::Serialize;
use std::collections::BTreeMap;

/// How much may differ.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Bounds {
    /// Nothing.
    Exact,
    /// Gradients of the first step, by max |a - b| / max |b| of each parameter.
    Gradients(f64),
}

/// The first difference.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// Optimizer step, 1-based.
    pub step: usize,
    /// Which value.
    pub what: String,
    /// Reduction group of the parameter; none for other values.
    pub group: Option<&'static str>,
    /// The rank that differs.
    pub rank: usize,
    /// Its value.
    pub found: f64,
    /// What one rank found.
    pub wanted: f64,
}

impl Difference {
    /// One line.
    pub fn text(&self) -> String {
        let Difference { step, what, group, rank, found, wanted } = self;
        let group = group.map_or(String::new(), |group| format!(" ({group} parameters)"));
        format!("step {step}: {what}{group} is {found:e} on rank {rank}, {wanted:e} on one rank")
    }
}

/// In the order in which a step makes values: losses, gradients, norm, updated state, biases.
pub(super) fn first_difference(
    inventory: &Inventory,
    alone: &[Observation],
    ranks: &[Vec<Observation>],
    bounds: Bounds,
) -> Option<Difference> {
    let steps = ranks.first().map_or(0, Vec::len);
    (0..steps).find_map(|step| {
        let observed: Vec<&Observation> = ranks.iter().map(|rank| &rank[step]).collect();
        let compared =
            Compared { inventory, step: step + 1, alone: &alone[step], ranks: &observed };
        match bounds {
            Bounds::Gradients(most) => compared.parameters(What::Gradient, Some(most)),
            Bounds::Exact => compared
                .losses()
                .or_else(|| compared.parameters(What::Gradient, None))
                .or_else(|| compared.norm())
                .or_else(|| {
                    let after = [What::Master, What::ExpAvg, What::ExpAvgSq, What::Weights];
                    after.into_iter().find_map(|what| compared.parameters(what, None))
                })
                .or_else(|| compared.biases()),
        }
    })
}

struct Compared<'a> {
    inventory: &'a Inventory,
    step: usize,
    alone: &'a Observation,
    ranks: &'a [&'a Observation],
}

impl Compared<'_> {
    fn value(&self, what: String, rank: usize, found: f64, wanted: f64) -> Option<Difference> {
        let differs = found.to_bits() != wanted.to_bits();
        differs.then_some(Difference { step: self.step, what, group: None, rank, found, wanted })
    }

    fn losses(&self) -> Option<Difference> {
        let depths = self.alone.losses.len() - 1;
        let name = |i: usize| match i {
            _ if i == depths => "the balance loss".to_string(),
            0 => "the loss".to_string(),
            _ => format!("the MTP loss at depth {i}"),
        };
        self.ranks.iter().enumerate().find_map(|(rank, one)| {
            let pairs = one.losses.iter().zip(&self.alone.losses).enumerate();
            pairs.into_iter().find_map(|(i, (a, b))| self.value(name(i), rank, *a, *b))
        })
    }

    fn norm(&self) -> Option<Difference> {
        let ranks = self.ranks.iter().enumerate();
        let name = || "the gradient norm".to_string();
        ranks.into_iter().find_map(|(r, one)| self.value(name(), r, one.norm, self.alone.norm))
    }

    fn biases(&self) -> Option<Difference> {
        self.ranks.iter().enumerate().find_map(|(rank, one)| {
            one.biases.iter().zip(&self.alone.biases).enumerate().find_map(|(layer, (a, b))| {
                a.iter().zip(b).enumerate().find_map(|(expert, (a, b))| {
                    let name = format!("the gate bias of layer {layer}, expert {expert},");
                    self.value(name, rank, f64::from(*a), f64::from(*b))
                })
            })
        })
    }

    /// Parameters in the order of the inventory; each must be held completely by somebody.
    fn parameters(&self, what: What, most: Option<f64>) -> Option<Difference> {
        let wanted: BTreeMap<ParameterId, &Piece> = of(self.alone, what).collect();
        let mut found: BTreeMap<ParameterId, Vec<(usize, &Piece)>> = BTreeMap::new();
        for (rank, one) in self.ranks.iter().enumerate() {
            for (id, piece) in of(one, what) {
                found.entry(id).or_default().push((rank, piece));
            }
        }
        wanted.into_iter().find_map(|(id, wanted)| {
            let pieces = found.get(&id).map_or(&[][..], Vec::as_slice);
            self.parameter(id, wanted, pieces, most)
        })
    }

    fn parameter(
        &self,
        id: ParameterId,
        wanted: &Piece,
        pieces: &[(usize, &Piece)],
        most: Option<f64>,
    ) -> Option<Difference> {
        let parameter = &self.inventory.parameters[id];
        let largest = wanted.values.iter().fold(0f32, |most, x| most.max(x.abs()));
        let mut held = vec![false; wanted.values.len()];
        for (rank, piece) in pieces {
            for (at, (a, b)) in piece
                .range
                .clone()
                .zip(piece.values.iter().zip(&wanted.values[piece.range.clone()]))
            {
                held[at] = true;
                let differs = match most {
                    None => a.to_bits() != b.to_bits(),
                    // Not a number is never within bounds.
                    Some(most) => {
                        f64::from((a - b).abs()) > most * f64::from(largest) || a.is_nan()
                    }
                };
                if differs {
                    return Some(self.element(parameter, (wanted.what, at, *rank), (*a, *b)));
                }
            }
        }
        let missing = held.iter().position(|held| !held)?;
        Some(self.element(parameter, (wanted.what, missing, 0), (f32::NAN, wanted.values[missing])))
    }

    fn element(
        &self,
        parameter: &lampyris_plan::Parameter,
        (what, at, rank): (What, usize, usize),
        (found, wanted): (f32, f32),
    ) -> Difference {
        let kind = match what {
            What::Gradient => "gradient",
            What::Master => "master weight",
            What::ExpAvg => "first moment",
            What::ExpAvgSq => "second moment",
            What::Weights => "weight",
        };
        let group = match parameter.group {
            Group::Dense => "dense",
            Group::Expert => "expert",
        };
        Difference {
            step: self.step,
            what: format!("{kind} of {} at element {at}", parameter.name),
            group: Some(group),
            rank,
            found: f64::from(found),
            wanted: f64::from(wanted),
        }
    }
}

fn of(one: &Observation, what: What) -> impl Iterator<Item = (ParameterId, &Piece)> {
    one.pieces.iter().filter(move |p| p.what == what).map(|p| (p.parameter, p))
}
