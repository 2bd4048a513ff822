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
    (CHUNK_BYTES / 4 / vocab.max(1)).max(1).next_multiple_of(64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::{Random, distance};
    use lampyris_torch::grad;
    use tch::Device;

    /// A vocabulary of which a chunk holds 128 rows: 150 tokens make two chunks.
    const VOCAB: i64 = 70_000;
    const TOKENS: i64 = 150;

    #[test]
    fn chunks_give_the_loss_and_the_gradients_of_the_whole() {
        let mut random = Random::new(7);
        let (hidden, head) = (random.tensor(&[TOKENS, 6]), random.tensor(&[VOCAB, 6]));
        let mut target = || if random.below(5) == 0 { -1 } else { random.below(70_000) as i64 };
        let targets: Vec<i64> = (0..TOKENS).map(|_| target()).collect();
        let targets = Tensor::from_slice(&targets);
        let scale = 0.01;
        let leaf = |x: &Tensor| x.copy().set_requires_grad(true);
        let (x, w) = (leaf(&hidden), leaf(&head));
        let log_p = x.matmul(&w.tr()).log_softmax(-1, None);
        let picked = log_p.gather(1, &targets.clamp_min(0).unsqueeze(1), false).squeeze_dim(1);
        let loss = -(picked * targets.ge(0).to_kind(Kind::Double)).sum(Kind::Double);
        let want = grad(&[loss.shallow_clone()], &[Tensor::from(scale)], &[&x, &w]).unwrap();
        let [dx, dw] = [0, 1].map(|i: usize| want[i].as_ref().unwrap());

        let float = |x: &Tensor| x.to_kind(Kind::Float);
        let (hidden, head) = (float(&hidden), float(&head));
        let mut sum = Tensor::zeros([VOCAB, 6], (Kind::Float, Device::Cpu));
        let mut chunks = 0;
        let mut add = |entry: WeightGradient| {
            let WeightGradient::Matmul { parameter: 3, x, dy } = entry else { unreachable!() };
            sum += dy.tr().matmul(&x);
            chunks += 1;
            Ok(())
        };
        let found = forward(&hidden, (&head, 3), &targets, scale, Some(&mut add)).unwrap();
        assert_eq!(chunks, 2);
        assert!((found.loss_sum / loss.double_value(&[]) - 1.0).abs() < 1e-6);
        // The input gradient is a product over 70,000 terms: in fp32 libtorch alone is off by 1e-4.
        let errors = [distance(&found.input_gradient.unwrap(), dx), distance(&sum, dw)];
        assert!(errors[0] < 4e-4 && errors[1] < 1e-5, "{errors:?}");

        let only_loss = forward(&hidden, (&head, 3), &targets, 1.0, None).unwrap();
        assert_eq!(only_loss.loss_sum.to_bits(), found.loss_sum.to_bits());
        assert!(only_loss.input_gradient.is_none());
    }

    #[test]
    fn a_chunk_is_never_empty_and_always_whole_blocks() {
        for vocab in [1, 257, 4096, 129_280, 1 << 40] {
            assert!(chunk_rows(vocab) >= 64 && chunk_rows(vocab).is_multiple_of(64));
        }
    }
}
