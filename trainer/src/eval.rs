//! Validation: the loss of held-out text in nats per token and bits per byte.

use crate::Result;
use crate::batches::upload;
use crate::executor::Reader;
use lampyris_data::ValidationWindows;
use tch::Device;

/// Result of one pass over validation text.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Evaluation {
    /// Mean loss per token.
    pub nats_per_token: f64,
    /// Loss in bits over the bytes of the same text; end-of-document targets are a cost without bytes.
    pub bits_per_byte: f64,
    /// Tokens predicted.
    pub tokens: u64,
    /// Bytes of text they stand for.
    pub bytes: u64,
}

/// Predicts every token of `windows` once, `rows` windows at a time; `watch(done, total)` follows.
pub fn evaluate(
    reader: &Reader<'_>,
    windows: &ValidationWindows,
    rows: usize,
    device: Device,
    mut watch: impl FnMut(u64, u64),
) -> Result<Evaluation> {
    let (total, rows) = (windows.count(), rows as u64);
    let mut nats = 0f64;
    let mut first = 0;
    while first < total {
        let batch = windows.batch(first..first + rows, 0);
        nats += reader.loss_sum(&upload(&batch, 1, device))?;
        first += rows;
        watch(first.min(total), total);
    }
    let (tokens, bytes) = (windows.tokens(), windows.bytes());
    Ok(Evaluation {
        nats_per_token: nats / tokens.max(1) as f64,
        bits_per_byte: nats / std::f64::consts::LN_2 / bytes.max(1) as f64,
        tokens,
        bytes,
    })
}
