//! Initial weights as a function of (seed, tensor name, element): the same on any layout, however tensors are stacked.

use lampyris_plan::inventory::{Init, Parameter};
use rayon::prelude::*;

/// Elements a task fills; a multiple of nothing in particular, large enough to be worth a task.
const TASK: usize = 1 << 16;

/// Fills `out`, the parameter's elements in row-major order.
pub fn fill(seed: u64, parameter: &Parameter, out: &mut [f32]) {
    match parameter.init {
        Init::Ones => out.fill(1.0),
        Init::Normal(std) => {
            let row = parameter.row_elements();
            for part in &parameter.parts {
                let range = part.first_row * row..(part.first_row + part.rows) * row;
                normal(key(seed, &part.hf_name), std, &mut out[range]);
            }
        }
    }
}

/// Normal numbers by element index: counter-based, so any part can be made anywhere.
fn normal(key: u64, std: f64, out: &mut [f32]) {
    out.par_chunks_mut(TASK).enumerate().for_each(|(task, chunk)| {
        for (i, value) in chunk.iter_mut().enumerate() {
            *value = (standard_normal(key, (task * TASK + i) as u64) * std) as f32;
        }
    });
}

/// Box-Muller on the two halves of one mixed counter.
fn standard_normal(key: u64, counter: u64) -> f64 {
    let bits = mix(key ^ mix(counter));
    let unit = |half: u64| (half as f64 + 0.5) / 2f64.powi(32);
    let (u, v) = (unit(bits >> 32), unit(bits & 0xffff_ffff));
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// The finalizer of SplitMix64 after one step of its sequence.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn key(seed: u64, name: &str) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
    let bytes: [u8; 8] = hasher.finalize().as_bytes()[..8].try_into().expect("8 of 32 bytes");
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_normal_and_depend_on_seed_name_and_index_only() {
        let mut all = vec![0f32; 200_000];
        normal(key(7, "a"), 2.0, &mut all);
        let n = all.len() as f64;
        let moment = |p: i32| all.iter().map(|&x| (f64::from(x) / 2.0).powi(p)).sum::<f64>() / n;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.01);
        assert!(moment(3).abs() < 0.03 && (moment(4) - 3.0).abs() < 0.06);
        assert_eq!(all[150_000], (standard_normal(key(7, "a"), 150_000) * 2.0) as f32);
        assert_ne!(key(7, "a"), key(8, "a"));
        assert_ne!(key(7, "a"), key(7, "b"));
    }
}
