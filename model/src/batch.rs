//! Token ids and targets of one micro-batch on the device.

use std::collections::HashMap;
use tch::{Device, Tensor};

/// One micro-batch of `sequences` windows of `length` positions. T = sequences * length.
#[derive(Debug)]
pub struct MicroBatch {
    /// Windows.
    pub sequences: usize,
    /// Positions of a window, S.
    pub length: usize,
    /// `ids[k]`: i64 `[T]`, the token at position i + k; depth 0 is the input, depth k feeds MTP layer k.
    pub ids: Vec<Tensor>,
    /// `targets[k]`: i64 `[T]`, the token at position i + k + 1, or -1 where there is nothing to predict.
    pub targets: Vec<Tensor>,
    /// By decoder layer: the expert of each `[T, K]` slot, in place of the gate's choice. Empty but where runs are compared
    /// whose gates must not differ (`verify`).
    pub choices: HashMap<usize, Vec<i64>>,
}

impl MicroBatch {
    /// Cuts windows of `length + depths` tokens, row-major `[sequences, length + depths]`, into inputs and targets.
    /// `valid(k, i)` says whether the depth-k target of flat position i counts.
    pub fn new(
        windows: &[i64],
        length: usize,
        depths: usize,
        valid: impl Fn(usize, usize) -> bool,
        device: Device,
    ) -> MicroBatch {
        let width = length + depths;
        assert!(windows.len().is_multiple_of(width), "windows are whole");
        let sequences = windows.len() / width;
        let shifted = |shift: usize| {
            let rows = windows.chunks_exact(width);
            rows.flat_map(|row| row[shift..shift + length].iter().copied()).collect::<Vec<i64>>()
        };
        let ids = (0..depths).map(|k| Tensor::from_slice(&shifted(k)).to(device)).collect();
        let targets = (0..depths)
            .map(|k| {
                let mut targets = shifted(k + 1);
                for (i, target) in targets.iter_mut().enumerate() {
                    if !valid(k, i) {
                        *target = -1;
                    }
                }
                Tensor::from_slice(&targets).to(device)
            })
            .collect();
        MicroBatch { sequences, length, ids, targets, choices: HashMap::new() }
    }

    /// Positions of the micro-batch, T.
    pub fn tokens(&self) -> usize {
        self.sequences * self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_cut_into_inputs_and_shifted_targets() {
        // Two windows of 3 positions and two depths.
        let windows = [1, 2, 3, 4, 5, 11, 12, 13, 14, 15];
        let valid = |k: usize, i: usize| (k, i) != (0, 4) && (k, i) != (1, 0);
        let batch = MicroBatch::new(&windows, 3, 2, valid, Device::Cpu);
        let values = |x: &Tensor| Vec::<i64>::try_from(x).unwrap();
        assert_eq!((batch.sequences, batch.length, batch.tokens()), (2, 3, 6));
        assert_eq!(values(&batch.ids[0]), [1, 2, 3, 11, 12, 13]);
        assert_eq!(values(&batch.ids[1]), [2, 3, 4, 12, 13, 14]);
        assert_eq!(values(&batch.targets[0]), [2, 3, 4, 12, -1, 14]);
        assert_eq!(values(&batch.targets[1]), [-1, 4, 5, 13, 14, 15]);
    }

    #[test]
    #[should_panic(expected = "windows are whole")]
    fn half_a_window_is_a_mistake_of_the_caller() {
        MicroBatch::new(&[1, 2, 3], 3, 1, |_, _| true, Device::Cpu);
    }
}
