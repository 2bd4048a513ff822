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
    use crate::deepseek::gate::select;
    use crate::reference::{Random, deepseek};
    use lampyris_plan::model_spec::Moe;

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
        let moe = Moe { experts_per_token: 2, ..deepseek().moe.unwrap() };
        let mut random = Random::new(8);
        let mut bias = vec![0f32; moe.experts];
        // Largest load over mean load of 256 fresh tokens; expert e starts ahead by 0.1 e.
        let mut violation = |bias: &mut Vec<f32>| {
            let scores: Vec<f32> = (0..256 * moe.experts)
                .map(|i| 0.1 * (i % moe.experts) as f32 + 0.1 * random.normal() as f32)
                .collect();
            let mut counts = vec![0u64; moe.experts];
            for expert in select(&scores, bias, &moe) {
                counts[usize::try_from(expert).unwrap()] += 1;
            }
            update(bias, &counts, 1e-3);
            let mean = 256.0 * moe.experts_per_token as f64 / moe.experts as f64;
            counts.iter().copied().max().unwrap() as f64 / mean - 1.0
        };
        let first = violation(&mut bias);
        for _ in 0..1000 {
            violation(&mut bias);
        }
        let last = (0..50).map(|_| violation(&mut bias)).sum::<f64>() / 50.0;
        assert!(first > 2.0 && last < 0.3, "{first} {last}");
    }
}
