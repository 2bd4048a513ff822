//! Muon: the momentum of a matrix, brought near to the orthogonal matrix next to it by Newton-Schulz iterations, is its
//! update (2502.16982, section 2: with weight decay, and scaled to the size of AdamW's updates).
//!
//! Bits depend on the matrix alone, not on where it lies in a bucket or on the number of threads: everything but the
//! momentum is computed in memory of its own, element by element or as a matrix product, and norm and Gram matrix are sums
//! over fixed blocks.

use crate::Result;
use lampyris_plan::flops::NEWTON_SCHULZ_ITERATIONS;
use lampyris_plan::inventory::Part;
use lampyris_torch::{dim, ops};
use tch::Tensor;

/// The quintic a x + b x^3 + c x^5 of an iteration, chosen for its slope at 0: singular values come into [0.7, 1.2].
const COEFFICIENTS: [f64; 3] = [3.4445, -4.7750, 2.0315];

/// Root mean square of an AdamW update's elements, roughly; an orthogonal matrix has 1 / sqrt(longer side).
const UPDATE_RMS: f64 = 0.2;

/// Keeps a zero matrix zero.
const NORM_EPS: f64 = 1e-7;

/// Columns of one product of a Gram matrix: where a product has few rows and sums over 1,000 elements or more, MKL gives
/// each thread a part of the sum.
const GRAM_BLOCK: i64 = 256;

/// One step's factors.
#[derive(Debug, Clone, Copy)]
pub struct Muon {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the momentum.
    pub momentum: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Factor on the gradient (clipping).
    pub grad_scale: f64,
}

impl Muon {
    /// Updates master weights and momentum `[out, in]`, fp32, in place; each of `parts` is a matrix of its own.
    pub fn step(&self, state: [&mut Tensor; 2], gradient: &Tensor, parts: &[Part]) -> Result<()> {
        let [weight, momentum] = state;
        let gradient = gradient.f_mul_scalar(self.grad_scale)?;
        let _momentum = momentum.f_mul_scalar_(self.momentum)?.f_add_(&gradient)?;
        // Nesterov: where the momentum will be if the next gradient is this one.
        let ahead = momentum.f_mul_scalar(self.momentum)?.f_add_(&gradient)?;
        let columns = weight.size()[1];
        for part in parts {
            let rows = |matrix: &Tensor| matrix.narrow(0, dim(part.first_row), dim(part.rows));
            let longer = dim(part.rows).max(columns) as f64;
            let update = orthogonalize(&rows(&ahead))?
                .f_mul_scalar_(self.lr * UPDATE_RMS * longer.sqrt())?;
            let _weight =
                rows(weight).f_mul_scalar_(1.0 - self.lr * self.weight_decay)?.f_sub_(&update)?;
        }
        Ok(())
    }
}

/// U Vᵀ of the singular value decomposition U S Vᵀ of `matrix`, nearly: X <- (a I + b G + c G^2) X with G = X Xᵀ, or the
/// same from the right where that G is the smaller.
fn orthogonalize(matrix: &Tensor) -> Result<Tensor> {
    let [a, b, c] = COEFFICIENTS;
    let norm = ops::square_sum(matrix)?.sqrt();
    let mut x = matrix.f_mul_scalar(1.0 / (norm + NORM_EPS))?;
    let wide = x.size()[0] <= x.size()[1];
    for _ in 0..NEWTON_SCHULZ_ITERATIONS {
        let gram = if wide { gram(&x)? } else { gram(&x.f_tr()?)? };
        let factor = gram.f_mm(&gram)?.f_mul_scalar_(c)?.f_add_(&gram.f_mul_scalar(b)?)?;
        let _diagonal = factor.f_diagonal(0, 0, 1)?.f_add_scalar_(a)?;
        x = if wide { factor.f_mm(&x)? } else { x.f_mm(&factor)? };
    }
    Ok(x)
}

/// X Xᵀ, block by block of columns.
fn gram(x: &Tensor) -> Result<Tensor> {
    let columns = x.size()[1];
    let block = |first: i64| x.f_narrow(1, first, GRAM_BLOCK.min(columns - first));
    let part = block(0)?;
    let mut sum = part.f_mm(&part.f_tr()?)?;
    let mut done = GRAM_BLOCK;
    while done < columns {
        let part = block(done)?;
        sum = sum.f_addmm_(&part, &part.f_tr()?)?;
        done += GRAM_BLOCK;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests;
