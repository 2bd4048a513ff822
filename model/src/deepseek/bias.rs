//! Auxiliary-loss-free balancing (DeepSeek-V3, section 2.1.2; 2408.15664): after each step the selection bias of an
//! overloaded expert falls and that of an underloaded one rises by gamma.

/// `bias += gamma * sign(mean(counts) - counts)`: bias and counts `[E]`, counts of the global batch.
pub fn update(bias: &mut [f32], counts: &[u64], gamma: f64) {
    let total: u64 = counts.iter().sum();
    let experts = counts.len() as u64;
    for (bias, &count) in bias.iter_mut().zip(counts) {
        // Compared in integers: count < total / experts without rounding.
        let sign = (total.cmp(&(count * experts))) as i8;
        *bias += f32::from(sign) * gamma as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formula in fp64.
    fn twin(bias: &[f32], counts: &[u64], gamma: f64) -> Vec<f64> {
        let mean = counts.iter().map(|&c| c as f64).sum::<f64>() / counts.len() as f64;
        let step = |c: u64| match (mean - c as f64).partial_cmp(&0.0) {
            Some(std::cmp::Ordering::Greater) => gamma,
            Some(std::cmp::Ordering::Less) => -gamma,
            _ => 0.0,
        };
        bias.iter().zip(counts).map(|(&b, &c)| f64::from(b) + step(c)).collect()
    }

    #[test]
    fn update_equals_the_formula() {
        for counts in [vec![4, 4, 4, 4], vec![0, 8, 3, 5], vec![1, 1, 1, 2], vec![16, 0, 0, 0]] {
            let start = vec![0.5, -0.25, 0.0, 1.0];
            let mut bias = start.clone();
            update(&mut bias, &counts, 1e-3);
            for (got, want) in bias.iter().zip(twin(&start, &counts, 1e-3)) {
                assert!((f64::from(*got) - want).abs() < 1e-7, "{got} {want} {counts:?}");
            }
        }
    }

    #[test]
    fn repeated_updates_balance_a_skewed_gate() {
        let base = [0.9f32, 0.5, 0.4, 0.3];
        let mut bias = vec![0f32; 4];
        let mut last = vec![];
        for _ in 0..2000 {
            // 64 tokens whose scores differ a little; top-1.
            let mut counts = vec![0u64; 4];
            for token in 0..64u64 {
                let jitter = |e: u64| ((token * 7 + e * 13) % 17) as f32 * 0.01;
                let score = |e: usize| base[e] + bias[e] + jitter(e as u64);
                let best = (0..4).max_by(|&a, &b| score(a).total_cmp(&score(b))).expect("four");
                counts[best] += 1;
            }
            update(&mut bias, &counts, 1e-3);
            last = counts;
        }
        assert!(last.iter().all(|&c| (8..=24).contains(&c)), "{last:?}");
    }
}
