//! Rotary position embedding: the table of cosines and sines, and YaRN (2309.00071, with the keys and rules of Hugging
//! Face's implementation).

use lampyris_plan::model_spec::{Rope, Yarn};
use std::f64::consts::PI;
use tch::{Device, Tensor};

/// cos and sin, fp32 `[positions, dim / 2]`, of a rotary part of `dim` elements.
pub fn angles(rope: &Rope, dim: usize, positions: usize, device: Device) -> (Tensor, Tensor) {
    let frequencies = frequencies(rope, dim);
    let factor = rope.yarn.as_ref().map_or(1.0, cos_sin_factor);
    let table = |f: fn(f64) -> f64| {
        let value = |(p, w): (usize, &f64)| (f(p as f64 * w) * factor) as f32;
        let values: Vec<f32> =
            (0..positions).flat_map(|p| frequencies.iter().map(move |w| value((p, w)))).collect();
        let shape = [lampyris_torch::dim(positions), lampyris_torch::dim(dim / 2)];
        Tensor::from_slice(&values).view(shape).to(device)
    };
    (table(f64::cos), table(f64::sin))
}

/// Angle per position of each pair, `dim / 2` values.
fn frequencies(rope: &Rope, dim: usize) -> Vec<f64> {
    let plain = (0..dim / 2).map(|i| rope.theta.powf(-((2 * i) as f64) / dim as f64));
    let Some(yarn) = &rope.yarn else { return plain.collect() };
    let (low, high) = correction_range(yarn, rope.theta, dim);
    plain
        .enumerate()
        .map(|(i, frequency)| {
            let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
            frequency / yarn.factor * ramp + frequency * (1.0 - ramp)
        })
        .collect()
}

/// The pairs between which YaRN goes over from extrapolation to interpolation.
fn correction_range(yarn: &Yarn, theta: f64, dim: usize) -> (f64, f64) {
    let pair = |rotations: f64| {
        let length = yarn.original_max_positions as f64;
        dim as f64 * (length / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
    };
    let top = (dim - 1) as f64;
    let low = pair(yarn.beta_fast).floor().clamp(0.0, top);
    let high = pair(yarn.beta_slow).ceil().clamp(0.0, top);
    (low, if low == high { high + 0.001 } else { high })
}

/// m(x) = 0.1 x ln(s) + 1.
fn mscale(yarn: &Yarn, x: f64) -> f64 {
    if yarn.factor <= 1.0 { 1.0 } else { 0.1 * x * yarn.factor.ln() + 1.0 }
}

/// Factor on cos and sin.
fn cos_sin_factor(yarn: &Yarn) -> f64 {
    let set = |value: Option<f64>| value.filter(|v| *v != 0.0);
    match (yarn.attention_factor, set(yarn.mscale), set(yarn.mscale_all_dim)) {
        (Some(factor), _, _) => factor,
        (None, Some(a), Some(b)) => mscale(yarn, a) / mscale(yarn, b),
        _ => mscale(yarn, 1.0),
    }
}

/// Factor on the softmax scale of MLA.
pub fn softmax_factor(rope: &Rope) -> f64 {
    let Some(yarn) = &rope.yarn else { return 1.0 };
    yarn.mscale_all_dim.filter(|m| *m != 0.0).map_or(1.0, |m| mscale(yarn, m).powi(2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::rotary;

    fn yarn(original: usize) -> Yarn {
        Yarn {
            factor: 40.0,
            original_max_positions: original,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: Some(1.0),
            mscale_all_dim: Some(1.0),
            attention_factor: None,
        }
    }

    #[test]
    fn correction_ranges_of_the_published_and_the_golden_model() {
        assert_eq!(correction_range(&yarn(4096), 1e4, 64), (10.0, 23.0));
        assert_eq!(correction_range(&yarn(32), 1e4, 8), (0.0, 1.0));
    }

    #[test]
    fn equal_mscales_leave_cos_and_sin_alone_and_scale_the_softmax() {
        assert_eq!(cos_sin_factor(&yarn(4096)), 1.0);
        let rope = Rope { theta: 1e4, interleaved: true, yarn: Some(yarn(4096)) };
        let m = 0.1 * 40f64.ln() + 1.0;
        assert!((softmax_factor(&rope) - m * m).abs() < 1e-12);
    }

    #[test]
    fn tables_equal_the_direct_formula() {
        let stretched = |change: fn(&mut Yarn)| {
            let mut yarn = yarn(64);
            change(&mut yarn);
            Some(yarn)
        };
        let yarns = [
            None,
            stretched(|_| ()),
            stretched(|y| (y.mscale, y.mscale_all_dim) = (Some(0.707), Some(1.4))),
            stretched(|y| (y.mscale, y.mscale_all_dim) = (None, Some(0.5))),
            stretched(|y| (y.mscale, y.mscale_all_dim) = (Some(0.5), Some(0.0))),
            stretched(|y| y.attention_factor = Some(0.9)),
            stretched(|y| y.factor = 1.0),
            stretched(|y| (y.beta_fast, y.beta_slow, y.factor) = (4.0, 0.5, 3.0)),
            stretched(|y| (y.original_max_positions, y.beta_fast) = (1_000_000, 2.0)),
        ];
        for (theta, dim) in [(1e4, 64), (1e4, 8), (5e5, 2), (50.0, 32)] {
            for yarn in &yarns {
                let rope = Rope { theta, interleaved: true, yarn: yarn.clone() };
                let (cos, sin) = angles(&rope, dim, 70, Device::Cpu);
                assert_eq!(cos.size(), [70, lampyris_torch::dim(dim / 2)]);
                let table = |t: Tensor| Vec::<f32>::try_from(t.flatten(0, -1)).unwrap();
                let (cos, sin) = (table(cos), table(sin));
                for (i, (cos, sin)) in cos.into_iter().zip(sin).enumerate() {
                    let (position, pair) = (i / (dim / 2), i % (dim / 2));
                    let angle = position as f64 * rotary::frequency(&rope, dim, pair);
                    let factor = rotary::length_factor(&rope);
                    let off = f64::max(
                        (f64::from(cos) - angle.cos() * factor).abs(),
                        (f64::from(sin) - angle.sin() * factor).abs(),
                    );
                    assert!(off < 1e-7 * factor, "{rope:?} {position} {pair}: {off:e}");
                }
                assert!((softmax_factor(&rope) - rotary::softmax_factor(&rope)).abs() < 1e-12);
            }
        }
    }

    /// Pairs that turn fast keep their frequency, slow ones are stretched by the whole factor.
    #[test]
    fn yarn_keeps_fast_pairs_and_stretches_slow_ones() {
        let rope = |yarn| Rope { theta: 1e4, interleaved: true, yarn };
        let (plain, stretched) =
            (frequencies(&rope(None), 64), frequencies(&rope(Some(yarn(4096))), 64));
        for (i, (plain, stretched)) in plain.iter().zip(&stretched).enumerate() {
            let ratio = plain / stretched;
            match i {
                0..=10 => assert_eq!(ratio, 1.0),
                23.. => assert!((ratio - 40.0).abs() < 1e-9, "{i}: {ratio}"),
                _ => assert!(ratio > 1.0 && ratio < 40.0, "{i}: {ratio}"),
            }
        }
    }
}
