//! What a step counts beside gradients: the loss of each micro-batch and the tokens of each expert.
//!
//! Losses are kept apart by micro-batch and layer and added at the end, in the order of the global batch: their sum then
//! has the same bits for any number of ranks and any order of instructions.

use crate::Result;
use crate::planted::{Bug, planted};
use crate::ranks::Ranks;

/// Losses and counts of a step.
#[derive(Debug)]
pub struct Tally {
    depths: usize,
    /// Per micro-batch: loss of each prediction depth, then balance loss of each layer.
    columns: usize,
    /// `[micro-batches, columns]`, of this rank before [`Tally::exchange`], of the global batch after it.
    losses: Vec<f64>,
    /// Tokens per expert by decoder layer, of this rank before, of the global batch after.
    pub expert_counts: Vec<Vec<u64>>,
}

impl Tally {
    /// Zeros. `biases` by decoder layer say how many experts each has.
    pub fn new(micro_batches: usize, depths: usize, biases: &[Vec<f32>]) -> Tally {
        let columns = depths + biases.len();
        Tally {
            depths,
            columns,
            losses: vec![0.0; micro_batches * columns],
            expert_counts: biases.iter().map(|bias| vec![0; bias.len()]).collect(),
        }
    }

    /// Summed loss of a prediction depth, nats.
    pub fn loss(&mut self, micro: usize, depth: usize, sum: f64) {
        self.losses[micro * self.columns + depth] = sum;
    }

    /// Balance loss of a layer.
    pub fn balance(&mut self, micro: usize, layer: usize, loss: f64) {
        self.losses[micro * self.columns + self.depths + layer] = loss;
    }

    /// Counts the tokens that a micro-batch sends to each expert of a layer: `chosen` names the expert of each slot.
    pub fn count(&mut self, layer: usize, chosen: &[i64]) {
        let counts = &mut self.expert_counts[layer];
        for &expert in chosen {
            counts[usize::try_from(expert).expect("experts are counted from 0")] += 1;
        }
    }

    /// Makes this tally that of the global batch, and brings `table` together on the way: one exchange for both. Every
    /// place of `table` is filled by one rank and zero on the others.
    pub fn exchange(&mut self, ranks: &Ranks, table: &mut Vec<f64>) -> Result<()> {
        let own = table.len();
        let mine = self.losses.len();
        let world = ranks.mesh().data;
        let first = own + ranks.rank() * mine;
        table.resize(own + world * mine, 0.0);
        table[first..first + mine].copy_from_slice(&self.losses);
        // Whole numbers below 2^53 add exactly, in any order.
        table.extend(self.expert_counts.iter().flatten().map(|&count| count as f64));
        ranks.fill_table(table)?;
        let counts = table.split_off(own + world * mine);
        self.losses = table.split_off(own);
        if planted(Bug::LocalCounts) {
            return Ok(());
        }
        let sums = self.expert_counts.iter_mut().flatten();
        sums.zip(counts).for_each(|(sum, count)| *sum = count as u64);
        Ok(())
    }

    /// Loss of each depth, and balance loss, added in order.
    pub fn sums(&self) -> (Vec<f64>, f64) {
        let (mut losses, mut balance) = (vec![0.0; self.depths], 0.0);
        for micro in self.losses.chunks_exact(self.columns) {
            losses.iter_mut().zip(micro).for_each(|(sum, loss)| *sum += loss);
            micro[self.depths..].iter().for_each(|loss| balance += loss);
        }
        (losses, balance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_added_by_micro_batch_and_layer_whatever_the_order_of_instructions() {
        let mut tally = Tally::new(2, 2, &[vec![], vec![0.0; 3]]);
        tally.balance(1, 1, 0.25);
        tally.loss(1, 0, 1e16);
        tally.loss(1, 1, 7.0);
        tally.loss(0, 0, 1.0);
        tally.balance(0, 1, 0.5);
        tally.count(1, &[2, 0, 1, 2, 1, 2]);
        let mut table = vec![3.0, 4.0];
        tally.exchange(&Ranks::alone(), &mut table).expect("alone");
        assert_eq!(table, [3.0, 4.0]);
        assert_eq!(tally.sums(), (vec![1.0 + 1e16, 7.0], 0.75));
        assert_eq!(tally.expert_counts, [vec![], vec![1, 2, 3]]);
    }
}
