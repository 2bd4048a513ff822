//! Canonical reduction: the sum of all leaves of a step as one balanced binary tree, whatever the number of ranks.
//!
//! The recipe fixes a number of leaves L, a power of two. A rank owns L/dp consecutive leaves; it adds them here, level
//! by level as they come, so it holds at most log2(L/dp) + 1 buffers. The higher levels of the same tree are the fused
//! kernel's (inside the node) and recursive halving's (between nodes).

use crate::kernels::{Level, Order, Sum};
use lampyris_comm::{DType, Memory};

/// Sums leaves in the order of a balanced binary tree, like a binary counter: two sums of equal height are added at
/// once. Buffers are reused from step to step.
#[derive(Debug)]
pub struct LeafTree {
    /// `heights[h]`: the sum of 2^h leaves that waits for its sibling.
    heights: Vec<Option<Vec<f32>>>,
    spare: Vec<Vec<f32>>,
    level: Level,
}

impl LeafTree {
    /// For `leaves` leaves per rank, a power of two.
    ///
    /// Panics when it is not.
    pub fn new(leaves: usize) -> Self {
        assert!(leaves.is_power_of_two(), "{leaves} leaves do not form a balanced tree");
        let heights = (0..=leaves.ilog2()).map(|_| None).collect();
        Self { heights, spare: Vec::new(), level: Level::detect() }
    }

    /// A buffer of `elements` zeros for the next leaf.
    pub fn leaf(&mut self, elements: usize) -> Vec<f32> {
        let mut buffer = self.spare.pop().unwrap_or_default();
        buffer.clear();
        buffer.resize(elements, 0.0);
        buffer
    }

    /// Adds the next leaf; the whole sum after the last one.
    ///
    /// Panics when a leaf comes after the last.
    pub fn push(&mut self, leaf: Vec<f32>) -> Option<Vec<f32>> {
        let mut sum = leaf;
        let top = self.heights.len() - 1;
        for height in 0..top {
            match self.heights[height].take() {
                None => {
                    self.heights[height] = Some(sum);
                    return None;
                }
                Some(mut left) => {
                    add(&mut left, &mut sum, self.level);
                    self.spare.push(sum);
                    sum = left;
                }
            }
        }
        Some(sum)
    }

    /// Takes a sum back for reuse.
    pub fn recycle(&mut self, buffer: Vec<f32>) {
        self.spare.push(buffer);
    }
}

/// `left += right`.
#[allow(unsafe_code, reason = "calls the kernel on two slices of this function")]
fn add(left: &mut [f32], right: &mut [f32], level: Level) {
    let both = [Memory::of(left), Memory::of(right)];
    let (input, output) = (DType::F32, DType::F32);
    let sum = Sum { inputs: &both, outputs: &both[..1], input, output, order: Order::Fold };
    // SAFETY: both slices are borrowed exclusively, and the level was detected.
    unsafe { sum.run(level) };
}

/// The slow twin: the balanced tree over leaves, written down.
///
/// Panics when there is no leaf.
pub fn reference(leaves: &[Vec<f32>]) -> Vec<f32> {
    if leaves.len() == 1 {
        return leaves[0].clone();
    }
    let (left, right) = leaves.split_at(leaves.len() / 2);
    let (left, right) = (reference(left), reference(right));
    left.iter().zip(&right).map(|(a, b)| a + b).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_are_added_as_the_balanced_tree_in_logarithmic_memory() {
        for leaves in [1usize, 2, 4, 8, 16] {
            let values: Vec<Vec<f32>> = (0..leaves)
                .map(|leaf| {
                    let value = [1e8, 1.0, -1e8, 1e-40, 3.0][leaf % 5];
                    (0..100).map(|i| value + (i * leaf) as f32 * 1e-3).collect()
                })
                .collect();
            let mut tree = LeafTree::new(leaves);
            for step in 0..2 {
                let mut most = 0;
                for (at, leaf) in values.iter().enumerate() {
                    let mut buffer = tree.leaf(100);
                    buffer.copy_from_slice(leaf);
                    let sum = tree.push(buffer);
                    most = most.max(tree.heights.iter().flatten().count());
                    assert_eq!(sum.is_some(), at + 1 == leaves);
                    if let Some(sum) = sum {
                        let same = sum.iter().zip(reference(&values));
                        assert!(same.clone().all(|(a, b)| a.to_bits() == b.to_bits()), "{step}");
                        tree.recycle(sum);
                    }
                }
                assert!(most <= leaves.ilog2() as usize + 1);
            }
        }
    }
}
