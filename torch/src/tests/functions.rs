//! Norms, linear layers, SwiGLU and embedding.

use super::*;
use crate::ops;

fn normed(x: &Tensor, w: &Tensor, eps: f64) -> Tensor {
    let mean = x.square().mean_dim([-1i64].as_slice(), true, Kind::Double);
    x / (mean + eps).sqrt() * w
}

fn gated(gate_up: &Tensor) -> Tensor {
    let halves = gate_up.chunk(2, -1);
    halves[0].shallow_clone() * halves[0].sigmoid() * &halves[1]
}

#[test]
fn rms_norm_equals_its_twins() {
    let _turn = Turn::take();
    // One column is left out: its gradient is zero but for rounding.
    for (i, (rows, cols)) in SHAPES.into_iter().enumerate().skip(1) {
        let seed = 10 * i as u64;
        Case {
            name: format!("rms_norm [{rows}, {cols}]"),
            inputs: vec![compute(random(seed, &[rows, cols]))],
            weights: vec![fp32(random(seed + 1, &[cols]) + 1.0)],
            call: |x: &[Tensor], w: &[Tensor], sink: &Sink| {
                vec![ops::rms_norm(&x[0], (&w[0], 10), 1e-6, sink).unwrap()]
            },
            formula: |x: &[Tensor], w: &[Tensor]| vec![normed(&x[0], &w[0], 1e-6)],
        }
        .check_values_and_bits();
    }
}

#[test]
fn rms_norm_takes_columns_of_a_wider_tensor_and_large_epsilons() {
    let _turn = Turn::take();
    Case {
        name: "rms_norm of a slice".to_string(),
        inputs: vec![compute(random(1, &[2, 65, 40]))],
        weights: vec![fp32(random(2, &[21]))],
        call: |x: &[Tensor], w: &[Tensor], sink: &Sink| {
            vec![ops::rms_norm(&x[0].narrow(2, 5, 21), (&w[0], 10), 0.3, sink).unwrap()]
        },
        formula: |x: &[Tensor], w: &[Tensor]| vec![normed(&x[0].narrow(2, 5, 21), &w[0], 0.3)],
    }
    .check_values_and_bits();
}

#[test]
fn linear_equals_its_formula() {
    let _turn = Turn::take();
    for (rows, input, output) in [(1, 1, 1), (1, 16, 7), (65, 24, 33), (64, 96, 128), (300, 70, 90)]
    {
        Case {
            name: format!("linear [{rows}, {input}] to {output}"),
            inputs: vec![compute(random(1, &[rows, input]))],
            weights: vec![compute(random(2, &[output, input]))],
            call: |x: &[Tensor], w: &[Tensor], sink: &Sink| {
                vec![ops::linear(&x[0], (&w[0], 10), sink).unwrap()]
            },
            formula: |x: &[Tensor], w: &[Tensor]| vec![x[0].matmul(&w[0].tr())],
        }
        .check_values();
    }
}

#[test]
fn norm_linear_equals_its_twins() {
    let _turn = Turn::take();
    for (rows, input, output) in [(1, 4, 3), (1, 17, 5), (65, 24, 33), (64, 96, 128), (300, 70, 90)]
    {
        Case {
            name: format!("norm_linear [{rows}, {input}] to {output}"),
            inputs: vec![compute(random(1, &[rows, input + 3]))],
            weights: vec![fp32(random(2, &[input]) + 1.0), compute(random(3, &[output, input]))],
            call: |x: &[Tensor], w: &[Tensor], sink: &Sink| {
                let x = x[0].narrow(1, 2, input);
                vec![ops::norm_linear(&x, (&w[0], 10), 1e-5, (&w[1], 11), sink).unwrap()]
            },
            formula: |x: &[Tensor], w: &[Tensor]| {
                let x = x[0].narrow(1, 2, input);
                vec![normed(&x, &w[0], 1e-5).matmul(&w[1].tr())]
            },
        }
        .check_values();
    }
}

#[test]
fn grouped_linear_equals_one_product_per_group_and_skips_empty_groups() {
    let _turn = Turn::take();
    let offsets: [&[i64]; 6] = [
        &[0, 1],
        &[0, 0, 5, 5, 5],
        &[0, 32, 32, 96, 128],
        &[0, 65, 66, 66, 130],
        &[0, 0, 0],
        &[0, 64, 128, 256, 320, 320, 384],
    ];
    for offsets in offsets {
        let (rows, groups) = (offsets[offsets.len() - 1], offsets.len() - 1);
        let (input, output) = (40, 72);
        Case {
            name: format!("grouped_linear {offsets:?}"),
            inputs: vec![compute(random(1, &[rows, input]))],
            weights: (0..groups).map(|g| compute(random(g as u64 + 2, &[output, input]))).collect(),
            call: |x: &[Tensor], w: &[Tensor], sink: &Sink| {
                let w: Vec<_> = w.iter().enumerate().map(|(g, w)| (w, 10 + g)).collect();
                vec![ops::grouped_linear(&x[0], &w, offsets, sink).unwrap()]
            },
            formula: |x: &[Tensor], w: &[Tensor]| {
                let group = |(g, w): (usize, &Tensor)| {
                    let rows = x[0].narrow(0, offsets[g], offsets[g + 1] - offsets[g]);
                    rows.matmul(&w.tr())
                };
                vec![Tensor::cat(&w.iter().enumerate().map(group).collect::<Vec<_>>(), 0)]
            },
        }
        .check_values();
    }
}

#[test]
fn swiglu_equals_its_twins() {
    let _turn = Turn::take();
    for (i, (rows, width)) in SHAPES.into_iter().enumerate() {
        let seed = 10 * i as u64;
        Case {
            name: format!("swiglu [{rows}, 2 * {width}]"),
            inputs: vec![compute(random(seed, &[rows, 2 * width]) * 4.0)],
            weights: vec![],
            call: |x: &[Tensor], _: &[Tensor], _: &Sink| vec![ops::swiglu(&x[0], None).unwrap()],
            formula: |x: &[Tensor], _: &[Tensor]| vec![gated(&x[0])],
        }
        .check_values_and_bits();
        Case {
            name: format!("swiglu [{rows}, 2 * {width}] with row weights"),
            inputs: vec![
                compute(random(seed, &[rows, 2 * width])),
                fp32(random(seed + 1, &[rows])),
            ],
            weights: vec![],
            call: |x: &[Tensor], _: &[Tensor], _: &Sink| {
                vec![ops::swiglu(&x[0], Some(&x[1])).unwrap()]
            },
            formula: |x: &[Tensor], _: &[Tensor]| vec![gated(&x[0]) * x[1].unsqueeze(1)],
        }
        .check_values_and_bits();
    }
}

/// silu(g) over the whole range of the exponential, element by element.
#[test]
fn the_exponential_is_good_to_a_few_units_in_the_last_place() {
    let _turn = Turn::take();
    let gate: Vec<f32> = (-8700..=8800).map(|i| i as f32 * 0.01).collect();
    let gate = Tensor::from_slice(&gate).view([-1, 1]);
    let both = Tensor::cat(&[&gate, &gate.ones_like()], 1);
    let got = ops::swiglu(&both, None).unwrap().to_kind(Kind::Double);
    let gate = gate.to_kind(Kind::Double);
    let want = &gate * gate.sigmoid();
    let error = ((&got - &want) / (want.abs() + 1e-300)).abs().max().double_value(&[]);
    assert!(error < 5e-7, "relative error {error:e}");
    let far = Tensor::from_slice(&[-90f32, 1.0, -1e30, 1.0, 90.0, 1.0, 1e30, 1.0]).view([4, 2]);
    let far = Vec::<f32>::try_from(ops::swiglu(&far, None).unwrap().flatten(0, -1)).unwrap();
    assert!(far[0].abs() < 1e-35 && far[1].abs() < 1e-7, "{far:?}");
    assert_eq!(far[2..], [90.0, 1e30]);
}

#[test]
fn embedding_equals_a_look_up_and_repeated_ids_add() {
    let _turn = Turn::take();
    for (tokens, vocab, hidden) in [(1, 3, 5), (65, 7, 16), (300, 50, 33)] {
        let ids = whole(5, &[tokens], 0, vocab);
        Case {
            name: format!("embedding [{tokens}] of [{vocab}, {hidden}]"),
            inputs: vec![fp32(zeros(&[1]))],
            weights: vec![compute(random(1, &[vocab, hidden]))],
            call: |x: &[Tensor], w: &[Tensor], sink: &Sink| {
                vec![ops::embedding((&w[0], 10), &ids, &x[0], sink).unwrap()]
            },
            formula: |_: &[Tensor], w: &[Tensor]| vec![w[0].index_select(0, &ids)],
        }
        .check_values_and_bits();
    }
}

/// A row's bits depend neither on the other rows nor on how many there are.
#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    let _turn = Turn::take();
    let sink = Sink::new();
    for kind in [Kind::Float, Kind::BFloat16] {
        for cols in [1, 15, 16, 33, 130] {
            let x = random(1, &[67, 2 * cols]).to_kind(kind);
            let w = random(2, &[2 * cols]).to_kind(Kind::Float);
            let norm = ops::rms_norm(&x, (&w, 0), 1e-6, &sink).unwrap();
            let gated = ops::swiglu(&x, None).unwrap();
            for row in [0, 1, 64, 66] {
                let alone = x.narrow(0, row, 1);
                let alone_norm = ops::rms_norm(&alone, (&w, 0), 1e-6, &sink).unwrap();
                assert!(same_bits(&alone_norm, &norm.narrow(0, row, 1)));
                let alone_gated = ops::swiglu(&alone, None).unwrap();
                assert!(same_bits(&alone_gated, &gated.narrow(0, row, 1)));
            }
        }
    }
}

/// What padding buys: with a fixed number of threads, a row of an expert has the same bits however many rows the expert
/// has, and in whichever of its blocks the row stands. (Sizes of `recipes/reference_moe.toml`.)
#[test]
fn rows_of_padded_experts_have_the_same_bits_in_blocks_of_any_number() {
    let _turn = Turn::take();
    let sink = Sink::new();
    for (kind, block) in [(Kind::Float, 32), (Kind::BFloat16, 64)] {
        for (threads, input, output) in [(1, 256, 256), (2, 256, 256), (2, 128, 256), (2, 64, 48)] {
            tch::set_num_threads(threads);
            let w = random(2, &[output, input]).to_kind(kind);
            let run = |x: &Tensor| {
                let x = x.copy().set_requires_grad(true);
                let y = ops::grouped_linear(&x, &[(&w, 0)], &[0, x.size()[0]], &sink).unwrap();
                let dy = y.detach().narrow(1, 0, output) * 0.5;
                let dx = grad(&[y.shallow_clone()], &[dy], &[&x]).unwrap().remove(0).unwrap();
                [y.detach(), dx]
            };
            let x = random(1, &[9 * block, input]).to_kind(kind);
            let whole = run(&x);
            for (shifted, whole) in run(&x.roll([5], [0])).iter().zip(&whole) {
                assert!(same_bits(shifted, &whole.roll([5], [0])), "{kind:?}: place in a block");
            }
            for (first, blocks) in [(0, 1), (3, 1), (2, 2), (1, 5), (8, 1)] {
                let (first, count) = (first * block, blocks * block);
                for (part, whole) in run(&x.narrow(0, first, count)).iter().zip(&whole) {
                    let same = same_bits(part, &whole.narrow(0, first, count));
                    assert!(same, "{kind:?} [{input}, {output}], {threads} threads, {count} rows");
                }
            }
        }
    }
}

/// A broken value must reach the loss, or the guard against it never sees it.
#[test]
fn not_a_number_goes_through_forward_and_backward() {
    let _turn = Turn::take();
    let case = Case {
        name: "norm, linear, swiglu".to_string(),
        inputs: vec![compute(random(1, &[5, 20]))],
        weights: vec![
            fp32(random(2, &[20])),
            compute(random(3, &[34, 20])),
            compute(random(4, &[9, 17])),
        ],
        call: |x: &[Tensor], w: &[Tensor], sink: &Sink| {
            let inner = ops::norm_linear(&x[0], (&w[0], 10), 1e-6, (&w[1], 11), sink).unwrap();
            let inner = ops::swiglu(&inner, None).unwrap();
            vec![ops::linear(&inner, (&w[2], 12), sink).unwrap()]
        },
        formula: |x: &[Tensor], w: &[Tensor]| {
            let inner = gated(&normed(&x[0], &w[0], 1e-6).matmul(&w[1].tr()));
            vec![inner.matmul(&w[2].tr())]
        },
    };
    case.check_values();
    for kind in [Kind::Float, Kind::BFloat16] {
        let mut broken = case.inputs[0].at(kind);
        let _filled = broken.narrow(0, 3, 1).narrow(1, 19, 1).fill_(f64::NAN);
        broken = broken.detach();
        let fused = case.run_on(vec![broken.copy()], kind, false, 1);
        let plain = case.run_on(vec![broken], kind, true, 1);
        for ((what, fused), (_, plain)) in fused.iter().zip(&plain) {
            assert!(fused.isnan().equal(&plain.isnan()), "{kind:?} {what}");
        }
        let rows = fused[0].1.isnan().any_dim(1, false);
        assert_eq!(Vec::<bool>::try_from(rows).unwrap(), [false, false, false, true, false]);
        assert!(fused.iter().all(|(_, x)| x.isnan().any().int64_value(&[]) == 1));
    }
}
