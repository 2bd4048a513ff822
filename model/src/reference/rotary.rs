//! RoPE and YaRN (2309.00071, sections 3.2 and 3.4) by their definitions.

use lampyris_plan::model_spec::{Rope, Yarn};
use std::f64::consts::TAU;

/// Angle per position of pair `pair` of a rotary part of `dim` elements.
pub(crate) fn frequency(rope: &Rope, dim: usize, pair: usize) -> f64 {
    let plain = 1.0 / rope.theta.powf(2.0 * pair as f64 / dim as f64);
    let Some(yarn) = &rope.yarn else { return plain };
    // A pair that turns beta_fast times or more over the original context stays; one that turns beta_slow times or less
    // is stretched by the factor; between them both are mixed, linearly in the pair's index.
    let pair_that_turns = |times: f64| {
        // original = times * wavelength, wavelength = 2 pi theta^(2 i / dim), solved for i
        let original = yarn.original_max_positions as f64;
        dim as f64 / 2.0 * (original / (times * TAU)).ln() / rope.theta.ln()
    };
    let last = (dim - 1) as f64;
    let stays_below = pair_that_turns(yarn.beta_fast).floor().clamp(0.0, last);
    let stretched_from = pair_that_turns(yarn.beta_slow).ceil().clamp(0.0, last);
    let width = stretched_from - stays_below;
    let width = if width == 0.0 { 0.001 } else { width };
    let stretched = ((pair as f64 - stays_below) / width).clamp(0.0, 1.0);
    (1.0 - stretched) * plain + stretched * plain / yarn.factor
}

/// 0.1 x ln(factor) + 1.
fn magnitude(yarn: &Yarn, x: f64) -> f64 {
    if yarn.factor > 1.0 { 0.1 * x * yarn.factor.ln() + 1.0 } else { 1.0 }
}

/// Factor on cos and sin.
pub(crate) fn length_factor(rope: &Rope) -> f64 {
    let Some(yarn) = &rope.yarn else { return 1.0 };
    let (a, b) = (yarn.mscale.unwrap_or(0.0), yarn.mscale_all_dim.unwrap_or(0.0));
    match yarn.attention_factor {
        Some(factor) => factor,
        None if a != 0.0 && b != 0.0 => magnitude(yarn, a) / magnitude(yarn, b),
        None => magnitude(yarn, 1.0),
    }
}

/// Factor on the softmax scale of multi-head latent attention.
pub(crate) fn softmax_factor(rope: &Rope) -> f64 {
    match &rope.yarn {
        Some(Yarn { mscale_all_dim: Some(x), .. }) if *x != 0.0 => {
            let m = magnitude(rope.yarn.as_ref().expect("matched above"), *x);
            m * m
        }
        _ => 1.0,
    }
}
