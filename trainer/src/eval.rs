//! Validation: the loss of held-out text in nats per token and bits per byte.

use crate::Result;
use crate::batches::upload;
use crate::forward::Reader;
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

/// Predicts every token of `windows` once, `rows` windows at a time, batches dealt to the ranks in turn; `watch(done,
/// total)` follows. Collective; the result is the same on all ranks, whatever their number.
pub fn evaluate(
    reader: &mut Reader<'_>,
    windows: &ValidationWindows,
    rows: usize,
    device: Device,
    mut watch: impl FnMut(u64, u64),
) -> Result<Evaluation> {
    let (total, rows) = (windows.count(), rows as u64);
    let (ranks, mesh) = (reader.ranks, reader.ranks.mesh());
    let batches = total.div_ceil(rows);
    let mut sums = vec![0f64; usize::try_from(batches).expect("fits memory")];
    for turn in 0..batches.div_ceil(mesh.data as u64) {
        let mine = turn * mesh.data as u64 + ranks.rank() as u64;
        // Where experts are spread over ranks a forward pass needs all of them: one without a batch repeats the last.
        if mine >= batches && mesh.expert == 1 {
            break;
        }
        let first = mine.min(batches - 1) * rows;
        let batch = windows.batch(first..first + rows, 0);
        let sum = reader.loss_sum(&upload(&batch, 1, device))?;
        if mine < batches {
            sums[mine as usize] = sum;
        }
        watch(((turn + 1) * rows * mesh.data as u64).min(total), total);
    }
    ranks.fill_table(&mut sums)?;
    let nats: f64 = sums.iter().sum();
    let (tokens, bytes) = (windows.tokens(), windows.bytes());
    Ok(Evaluation {
        nats_per_token: nats / tokens.max(1) as f64,
        bits_per_byte: nats / std::f64::consts::LN_2 / bytes.max(1) as f64,
        tokens,
        bytes,
    })
}
