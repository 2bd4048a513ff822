//! The order of samples: a permutation of each epoch that is computed, not stored, so that a run's cursor is the one
//! number "samples consumed".
//!
//! A Feistel network over the bits of the index is a bijection of 0..2^bits for any round function; walking on from
//! values outside the domain (cycle walking) restricts it to 0..samples. The keys come from (seed, epoch).

/// Rounds of the network, half of them on either side. Four already make a pseudorandom permutation of large domains
/// (Luby, Rackoff); tiny ones need a few more.
const ROUNDS: u64 = 8;

/// A sample of the training text: window `index` of pass `epoch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SampleId {
    /// Passes over the text before this one.
    pub epoch: u64,
    /// Window of the text, see [`crate::TrainingWindows`].
    pub index: u64,
}

/// The order in which a run reads its samples.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleOrder {
    seed: u64,
    samples: u64,
    low_bits: u32,
    high_bits: u32,
}

impl SampleOrder {
    /// The order under `seed` of `samples` samples per epoch. Panics if there are none.
    pub fn new(seed: u64, samples: u64) -> Self {
        assert!(samples > 0, "an epoch has at least one sample");
        // The smallest domain of at least 2 bits (one a side) that holds every index: less than twice the samples or 4.
        let bits = (u64::BITS - (samples - 1).leading_zeros()).max(2);
        Self { seed, samples, low_bits: bits / 2, high_bits: bits - bits / 2 }
    }

    /// Samples of one epoch.
    pub fn samples_per_epoch(&self) -> u64 {
        self.samples
    }

    /// The sample that a run reads after `position` others.
    pub fn sample_at(&self, position: u64) -> SampleId {
        let epoch = position / self.samples;
        SampleId { epoch, index: self.permute(epoch, position % self.samples) }
    }

    fn permute(&self, epoch: u64, index: u64) -> u64 {
        let key = mix(self.seed ^ mix(epoch));
        let mut value = index;
        loop {
            value = self.network(key, value);
            if value < self.samples {
                return value;
            }
        }
    }

    /// One pass of the network over `high_bits + low_bits` bits.
    fn network(&self, key: u64, value: u64) -> u64 {
        let (low_mask, high_mask) = ((1 << self.low_bits) - 1, (1 << self.high_bits) - 1);
        let (mut low, mut high) = (value & low_mask, value >> self.low_bits);
        for round in 0..ROUNDS / 2 {
            high ^= mix(mix(key.wrapping_add(2 * round)) ^ low) & high_mask;
            low ^= mix(mix(key.wrapping_add(2 * round + 1)) ^ high) & low_mask;
        }
        high << self.low_bits | low
    }
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014), after its golden-ratio increment.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_small_epoch_is_a_permutation() {
        for samples in 1..=300 {
            let order = SampleOrder::new(7, samples);
            for epoch in 0..3 {
                let mut seen = vec![false; samples as usize];
                for position in epoch * samples..(epoch + 1) * samples {
                    let sample = order.sample_at(position);
                    assert_eq!(sample.epoch, epoch);
                    assert!(!std::mem::replace(&mut seen[sample.index as usize], true));
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn large_epochs_are_permutations(seed: u64, samples in 1u64..70_000, epoch in 0u64..1_000_000) {
            let order = SampleOrder::new(seed, samples);
            let mut seen = vec![false; samples as usize];
            for index in 0..samples {
                let image = order.permute(epoch, index);
                prop_assert!(!std::mem::replace(&mut seen[image as usize], true));
            }
        }

        #[test]
        fn huge_epochs_stay_inside(seed: u64, samples in 1u64 << 40..1 << 50, position: u64) {
            prop_assert!(SampleOrder::new(seed, samples).sample_at(position).index < samples);
        }
    }

    #[test]
    fn seeds_and_epochs_differ() {
        let (a, b) = (SampleOrder::new(1, 1000), SampleOrder::new(2, 1000));
        let equal = |f: &dyn Fn(u64) -> bool| (0..1000).filter(|&i| f(i)).count();
        // Two random permutations of 1000 agree in one place on average.
        assert!(equal(&|i| a.sample_at(i).index == b.sample_at(i).index) < 8);
        assert!(equal(&|i| a.sample_at(i).index == a.sample_at(i + 1000).index) < 8);
        assert!(equal(&|i| a.sample_at(i).index == i) < 8);
    }

    #[test]
    fn neighbours_are_spread() {
        // Mean distance of neighbours in a random permutation of n is n/3.
        let order = SampleOrder::new(3, 4096);
        let distance: u64 = (0..4095)
            .map(|i| order.sample_at(i).index.abs_diff(order.sample_at(i + 1).index))
            .sum();
        let mean = distance / 4095;
        assert!((4096 / 3 - 100..4096 / 3 + 100).contains(&mean), "{mean}");
    }

    #[test]
    fn the_order_is_fixed_for_ever() {
        let order = SampleOrder::new(42, 10);
        let first: Vec<u64> = (0..10).map(|i| order.sample_at(i).index).collect();
        assert_eq!(first, PINNED);
    }

    /// A change here changes every run: it needs a new dataset format.
    const PINNED: [u64; 10] = [6, 3, 7, 2, 4, 1, 5, 0, 9, 8];
}
