//! Output head and loss. The gradient is made in the forward pass, chunk by chunk, so the logits of a micro-batch never
//! exist whole (design of Liger/DeepSeek's in-place cross entropy).

use crate::Result;
use lampyris_torch::ops::Weight;
use lampyris_torch::{WeightGradient, dim, ops};
use tch::{Kind, Tensor};

/// Logits of one chunk take at most about this many bytes of fp32.
const CHUNK_BYTES: usize = 32 << 20;

/// Loss of one micro-batch at one prediction depth.
#[derive(Debug)]
pub struct HeadOutput {
    /// Sum of the losses of valid positions, nats; added in fp64 in token order.
    pub loss_sum: f64,
    /// Gradient of `scale * loss_sum` to the head's input `[T, d]`; none without `accumulate`.
    pub input_gradient: Option<Tensor>,
}

/// Cross entropy of `hidden` `[T, d]` times the head against targets `[T]` (-1 = not counted). With `accumulate`, the
/// weight gradient of `scale * sum of losses` goes there, chunk by chunk.
pub fn forward(
    hidden: &Tensor,
    head: Weight<'_>,
    targets: &Tensor,
    scale: f64,
    mut accumulate: Option<&mut dyn FnMut(WeightGradient) -> Result<()>>,
) -> Result<HeadOutput> {
    let (tokens, vocab) = (hidden.size()[0], head.0.size()[0]);
    let rows = dim(chunk_rows(vocab));
    let gradient = accumulate.is_some().then(|| hidden.empty_like());
    let mut loss_sum = 0f64;
    let mut first = 0;
    while first < tokens {
        let count = rows.min(tokens - first);
        let x = hidden.narrow(0, first, count);
        let logits = x.matmul(&head.0.tr());
        let loss = ops::cross_entropy(&logits, &targets.narrow(0, first, count), scale)?;
        let losses = Vec::<f32>::try_from(loss.to_device(tch::Device::Cpu))?;
        loss_sum += losses.iter().map(|&l| f64::from(l)).sum::<f64>();
        if let (Some(accumulate), Some(gradient)) = (&mut accumulate, &gradient) {
            let mut out = gradient.narrow(0, first, count);
            out.copy_(&logits.matmul(head.0));
            accumulate(WeightGradient::Matmul { parameter: head.1, x, dy: logits })?;
        }
        first += count;
    }
    Ok(HeadOutput { loss_sum, input_gradient: gradient })
}

/// All logits, fp32 `[T, V]`: for parity and generation.
pub fn logits(hidden: &Tensor, head: &Tensor) -> Tensor {
    hidden.matmul(&head.tr()).to_kind(Kind::Float)
}

fn chunk_rows(vocab: i64) -> usize {
    let vocab = usize::try_from(vocab).expect("a vocabulary is not negative");
    // A multiple of 64 rows: a chunk then has the bits it has inside any larger product.
    (CHUNK_BYTES / 4 / vocab.max(1)).next_multiple_of(64)
}
