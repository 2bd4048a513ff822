//! The expected results of a parity case: inputs, logits, loss and gradients that `transformers` computed.

use super::folder::Weights;
use crate::error::{Error, Result};
use safetensors::Dtype;
use std::path::Path;

/// Prefix of gradient tensors.
const GRADIENT: &str = "grad.";

/// A `golden.safetensors` file.
#[derive(Debug)]
pub struct Golden {
    /// `[batch, sequence]` of [`Golden::input_ids`].
    pub shape: [usize; 2],
    /// Token ids, row-major.
    pub input_ids: Vec<i64>,
    /// Mean cross-entropy of predicting each next token, in nats.
    pub loss: f32,
    /// Names of the tensors with a gradient, sorted.
    pub gradients: Vec<String>,
    weights: Weights,
}

impl Golden {
    /// Opens `path` and reads all but logits and gradients.
    ///
    /// # Errors
    /// A file without `input_ids` (int64, two dimensions), `logits` or `loss`.
    pub fn open(path: &Path) -> Result<Golden> {
        let weights = Weights::open(path)?;
        let ids = weights.info("input_ids")?;
        let ([batch, sequence], Dtype::I64) = (ids.shape.as_slice(), ids.dtype) else {
            return Err(Error::malformed(path, "input_ids must be int64 [batch, sequence]"));
        };
        let shape = [*batch, *sequence];
        let mut bytes = vec![0; batch * sequence * 8];
        weights.read_raw(ids.data_offsets.0 as u64, &mut bytes)?;
        let input_ids = bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        match weights.info("logits")?.shape.as_slice() {
            [b, s, _] if [*b, *s] == shape => {}
            other => {
                let problem = format!("logits are {other:?}, input_ids {shape:?}");
                return Err(Error::malformed(path, problem));
            }
        }
        let mut loss = [0.0];
        weights.read_f32("loss", 0, &mut loss)?;
        let mut gradients: Vec<String> = weights
            .header()
            .offset_keys()
            .iter()
            .filter_map(|name| name.strip_prefix(GRADIENT).map(str::to_string))
            .collect();
        gradients.sort();
        Ok(Golden { shape, input_ids, loss: loss[0], gradients, weights })
    }

    /// Logits `[batch, sequence, vocabulary]`.
    ///
    /// # Errors
    /// A failure to read.
    pub fn logits(&self) -> Result<(Vec<usize>, Vec<f32>)> {
        self.tensor("logits")
    }

    /// Gradient of the loss with respect to Hugging Face tensor `name`.
    ///
    /// # Errors
    /// No such gradient, or a failure to read.
    pub fn gradient(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        self.tensor(&format!("{GRADIENT}{name}"))
    }

    fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let shape = self.weights.info(name)?.shape.clone();
        let mut values = vec![0.0; shape.iter().product()];
        self.weights.read_f32(name, 0, &mut values)?;
        Ok((shape, values))
    }
}
