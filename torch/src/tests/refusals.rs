//! Arguments that would make a kernel read or write beside a tensor come back as errors.

use super::*;
use crate::{Result, ops};

fn float(shape: &[i64]) -> Tensor {
    random(1, shape).to_kind(Kind::Float)
}

/// The message of a refused call.
fn refused<T>(result: Result<T>) -> String {
    match result {
        Ok(_) => panic!("was not refused"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let _turn = Turn::take();
    let sink = Sink::new();
    let (x, short) = (float(&[4, 6]), float(&[5]));
    refused(ops::linear(&x, (&short, 0), &sink));
    refused(ops::rms_norm(&x, (&short, 0), 1e-6, &sink));
    refused(ops::norm_linear(&x, (&short, 0), 1e-6, (&float(&[3, 6]), 1), &sink));
    refused(ops::swiglu(&float(&[4, 7]), None));
    refused(ops::swiglu(&x, Some(&float(&[3]))));
    refused(ops::grouped_linear(&x, &[(&float(&[3, 6]), 0)], &[0, 5], &sink));
    refused(ops::grouped_linear(&x, &[(&float(&[3, 6]), 0)], &[0, 3], &sink));
    let (state, gradient) = (float(&[8]), float(&[7]));
    refused(ops::adamw([&state, &state, &state], &gradient, None, &ADAMW));
    refused(ops::adamw([&state, &gradient, &state], &state, None, &ADAMW));
}

const ADAMW: ops::AdamW = ops::AdamW {
    lr: 0.0,
    beta1: 0.9,
    beta2: 0.9,
    eps: 1e-8,
    weight_decay: 0.0,
    step: 1,
    grad_scale: 1.0,
};

#[test]
fn element_types_without_a_kernel_are_refused() {
    let _turn = Turn::take();
    let sink = Sink::new();
    let x = float(&[4, 6]);
    let double = x.to_kind(Kind::Double);
    let message = refused(ops::swiglu(&double, None));
    assert!(message.contains("use float32 or bfloat16"), "{message}");
    let low = float(&[6]).to_kind(Kind::BFloat16);
    refused(ops::rms_norm(&x, (&low, 0), 1e-6, &sink));
    refused(ops::swiglu(&x, Some(&float(&[4]).to_kind(Kind::BFloat16))));
    let state = float(&[8]);
    let copy = float(&[8]);
    refused(ops::adamw([&state, &state, &state], &state, Some(&copy), &ADAMW));
    refused(ops::gather_rows(&x, &Tensor::from_slice(&[0i32])));
    refused(ops::square_sum(&double));
}

#[test]
fn rows_that_do_not_exist_are_refused() {
    let _turn = Turn::take();
    let rows = |values: &[i64]| Tensor::from_slice(values);
    let x = float(&[4, 6]);
    refused(ops::gather_rows(&x, &rows(&[0, 4])));
    let table = |value: i64| rows(&[0, value]).view([1, 2]);
    refused(ops::sum_rows(&x, &table(4), &table(1)));
    refused(ops::sum_rows(&x, &table(-1), &table(1)));
    refused(ops::sum_rows(&x, &table(1), &rows(&[0])));
    for plain in [false, true] {
        plain_only(plain);
        refused(ops::cross_entropy(&x, &rows(&[0, 1, 2, 6]), 1.0));
        refused(ops::cross_entropy(&x, &rows(&[0, 1, 2]), 1.0));
    }
    plain_only(false);
}

#[test]
fn heads_that_do_not_fit_are_refused() {
    let _turn = Turn::take();
    let (cos, sin) = (float(&[3, 2]), float(&[3, 2]));
    let mla = ops::Mla { sequence: 4, heads: 1, nope: 2, rope: 4, value: 2 };
    let message = refused(ops::mla_pack(
        &float(&[4, 6]),
        &float(&[4, 4]),
        &float(&[4, 4]),
        (&cos, &sin),
        mla,
    ));
    assert!(message.contains("positions"), "{message}");
    let (cos, sin) = (float(&[4, 2]), float(&[4, 2]));
    let angles = (&cos, &sin);
    refused(ops::mla_pack(&float(&[4, 5]), &float(&[4, 4]), &float(&[4, 4]), angles, mla));
    refused(ops::mla_pack(&float(&[4, 6]), &float(&[4, 4]), &float(&[4, 2]), angles, mla));
    refused(ops::mla_pack(&float(&[5, 6]), &float(&[5, 4]), &float(&[5, 4]), angles, mla));
    let gqa = ops::Gqa { sequence: 4, heads: 2, kv_heads: 1, head_dim: 4, interleaved: true };
    refused(ops::gqa_pack(&float(&[4, 15]), angles, gqa));
    refused(ops::gqa_pack(&float(&[6, 16]), angles, gqa));
    let long = ops::Gqa { sequence: 5, ..gqa };
    refused(ops::gqa_pack(&float(&[5, 16]), angles, long));
}
