//! Text from a model: temperature, top-p, a seed; every token by a plain forward pass.

use crate::Result;
use crate::forward::Reader;
use lampyris_data::Tokenizer;
use lampyris_model::{MicroBatch, head};
use lampyris_plan::TrainPlan;
use tch::{Device, Kind};

/// How the next token is drawn.
#[derive(Debug, Clone, Copy)]
pub struct Sampling {
    /// Divides the logits; 0 takes the best token.
    pub temperature: f64,
    /// Draws among the most likely tokens that together reach this probability.
    pub top_p: f64,
    /// Seed of the draws.
    pub seed: u64,
    /// Tokens to write at most.
    pub count: usize,
    /// Tokens the model sees at once.
    pub window: usize,
}

/// The plan's sample: what the model makes of `output.sample_prompt`; none where the plan wants none.
///
/// # Errors
/// The prompt has characters that the tokenizer does not know, or a forward pass fails.
pub fn sample(
    plan: &TrainPlan,
    tokenizer: &Tokenizer,
    reader: &mut Reader<'_>,
    device: Device,
) -> anyhow::Result<Option<String>> {
    let output = &plan.output;
    if output.sample_prompt.is_empty() || output.sample_tokens == 0 {
        return Ok(None);
    }
    let encoded = tokenizer.encode(&output.sample_prompt)?;
    let mut tokens: Vec<i64> = encoded.into_iter().map(i64::from).collect();
    let end = i64::from(tokenizer.end_of_document());
    if tokens.is_empty() {
        tokens.push(end);
    }
    let sampling = Sampling {
        temperature: 0.8,
        top_p: 0.95,
        seed: plan.seed,
        count: output.sample_tokens,
        window: plan.batch.sequence_length,
    };
    let mut decoder = tokenizer.decoder();
    let mut text = String::new();
    let each = |token: i64| {
        let piece = u32::try_from(token).ok().and_then(|token| decoder.push(token).ok());
        text += &piece.unwrap_or_default();
        token != end
    };
    continue_tokens(reader, &mut tokens, sampling, device, each)?;
    text += &decoder.finish()?;
    Ok(Some(text))
}

/// Continues `tokens`; `each` gets every new token and says whether to go on.
pub fn continue_tokens(
    reader: &mut Reader<'_>,
    tokens: &mut Vec<i64>,
    sampling: Sampling,
    device: Device,
    mut each: impl FnMut(i64) -> bool,
) -> Result<()> {
    for n in 0..sampling.count {
        let seen = &tokens[tokens.len().saturating_sub(sampling.window)..];
        let mut row = seen.to_vec();
        row.push(0); // no target is looked at
        let batch = MicroBatch::new(&row, seen.len(), 1, |_, _| false, device);
        let hidden = reader.hidden(&batch)?;
        let last = hidden.narrow(0, hidden.size()[0] - 1, 1);
        let weight = reader.state.weights.get(reader.network.head()).0;
        let logits = tch::no_grad(|| head::logits(&last, weight).view([-1]).to_device(Device::Cpu));
        let logits = Vec::<f32>::try_from(logits.to_kind(Kind::Float))?;
        let token = draw(&logits, sampling, n as u64);
        tokens.push(token);
        if !each(token) {
            break;
        }
    }
    Ok(())
}

/// One token from `logits`; the n-th draw of a seed is always the same.
fn draw(logits: &[f32], sampling: Sampling, n: u64) -> i64 {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    if sampling.temperature <= 0.0 {
        return lampyris_torch::dim(order[0]);
    }
    let top = f64::from(logits[order[0]]);
    let weight = |&token: &usize| ((f64::from(logits[token]) - top) / sampling.temperature).exp();
    let weights: Vec<f64> = order.iter().map(weight).collect();
    let total: f64 = weights.iter().sum();
    let (mut kept, mut mass) = (0, 0.0);
    while kept < weights.len() && (kept == 0 || mass < sampling.top_p * total) {
        mass += weights[kept];
        kept += 1;
    }
    let mut left = uniform(sampling.seed, n) * mass;
    for (token, weight) in order.iter().zip(&weights).take(kept) {
        left -= weight;
        if left <= 0.0 {
            return lampyris_torch::dim(*token);
        }
    }
    lampyris_torch::dim(order[kept - 1])
}

/// The n-th number of a seed, uniform in [0, 1).
pub fn uniform(seed: u64, n: u64) -> f64 {
    let hash = blake3::hash(&[seed.to_le_bytes(), n.to_le_bytes()].concat());
    let bytes: [u8; 8] = hash.as_bytes()[..8].try_into().expect("8 of 32 bytes");
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_distribution_and_top_p_cuts_it() {
        let logits = [0.0f32, 2f32.ln(), f32::NEG_INFINITY, 1f32.ln()];
        let count = |top_p: f64, temperature: f64| {
            let mut counts = [0usize; 4];
            for n in 0..4000 {
                let sampling = Sampling { temperature, top_p, seed: 5, count: 1, window: 1 };
                counts[usize::try_from(draw(&logits, sampling, n)).expect("a token")] += 1;
            }
            counts
        };
        let all = count(1.0, 1.0);
        assert!((1880..2120).contains(&all[1]) && (880..1120).contains(&all[0]), "{all:?}");
        assert_eq!(all[2], 0);
        assert_eq!(count(0.4, 1.0)[1], 4000);
        assert_eq!(count(1.0, 0.0)[1], 4000);
    }
}
