//! Heads with RoPE and causal attention.

use super::*;
use crate::ops;

/// cos and sin `[positions, half]`, fp32 as the model makes them.
fn angles(positions: i64, half: i64) -> (Tensor, Tensor) {
    let angle = random(77, &[positions, half]) * 3.0;
    (angle.cos().to_kind(Kind::Float), angle.sin().to_kind(Kind::Float))
}

/// x `[B, S, heads, 2 * half]` rotated pair by pair, by the definition of a rotation.
fn rotated(x: &Tensor, angles: (&Tensor, &Tensor), interleaved: bool) -> Tensor {
    let half = x.size()[3] / 2;
    let table = |t: &Tensor| t.narrow(0, 0, x.size()[1]).unsqueeze(1).to_kind(Kind::Double);
    let (cos, sin) = (table(angles.0), table(angles.1));
    let pair = |i: i64| -> (Tensor, Tensor) {
        let (a, b) = if interleaved { (2 * i, 2 * i + 1) } else { (i, i + half) };
        let (a, b) = (x.select(3, a), x.select(3, b));
        let (cos, sin) = (cos.select(2, i), sin.select(2, i));
        (&a * &cos - &b * &sin, b * cos + a * sin)
    };
    let pairs: Vec<(Tensor, Tensor)> = (0..half).map(pair).collect();
    let columns: Vec<&Tensor> = if interleaved {
        pairs.iter().flat_map(|(a, b)| [a, b]).collect()
    } else {
        pairs.iter().map(|p| &p.0).chain(pairs.iter().map(|p| &p.1)).collect()
    };
    Tensor::stack(&columns, 3)
}

/// `[B, S, heads, d]` -> `[B * heads, S, d]`.
fn heads_first(x: &Tensor) -> Tensor {
    x.transpose(1, 2).flatten(0, 1)
}

#[test]
fn attention_equals_masked_softmax_for_shared_and_own_key_heads() {
    let _turn = Turn::take();
    let grid = [
        (1, 1, 1, 4, 4),
        (2, 1, 7, 8, 8),
        (3, 2, 17, 6, 10),
        (2, 4, 33, 16, 8),
        (1, 3, 65, 5, 7),
        (4, 2, 100, 24, 16),
        // Queries in blocks, and shared keys of the same length in one.
        (3, 1, 256, 12, 8),
        (2, 1, 384, 8, 16),
        (1, 2, 256, 8, 8),
    ];
    for (blocks, group, sequence, d, d_v) in grid {
        let scale = (d as f64).powf(-0.5);
        let rows = group * sequence;
        Case {
            name: format!("attention {blocks} blocks of {group} heads, S {sequence}"),
            inputs: vec![
                compute(random(1, &[blocks, rows, d])),
                compute(random(2, &[blocks, sequence, d])),
                compute(random(3, &[blocks, sequence, d_v])),
            ],
            weights: vec![],
            call: |x: &[Tensor], _: &[Tensor], _: &Sink| {
                vec![ops::attention(&x[0], &x[1], &x[2], scale).unwrap()]
            },
            formula: |x: &[Tensor], _: &[Tensor]| {
                let one_head = |g: i64| {
                    let q = x[0].narrow(1, g * sequence, sequence);
                    let scores = q.matmul(&x[1].transpose(1, 2)) * scale;
                    let future = scores.ones_like().triu(1).to_kind(Kind::Bool);
                    let p = scores.masked_fill(&future, f64::NEG_INFINITY).softmax(-1, None);
                    p.matmul(&x[2])
                };
                vec![Tensor::cat(&(0..group).map(one_head).collect::<Vec<_>>(), 1)]
            },
        }
        .check_values();
    }
}

/// With unit matrices as keys and values every product is exact, so the bits are those of the softmax kernels.
#[test]
fn softmax_and_its_backward_do_not_depend_on_threads() {
    let _turn = Turn::take();
    let n = 100;
    for kind in [Kind::Float, Kind::BFloat16] {
        let unit = Tensor::eye(n, (kind, Device::Cpu)).repeat([3, 1, 1]);
        let run = |threads: i32, plain: bool| {
            tch::set_num_threads(threads);
            plain_only(plain);
            let q = (random(1, &[3, 2 * n, n]) * 4.0).to_kind(kind).set_requires_grad(true);
            let out = ops::attention(&q, &unit, &unit, 0.7).unwrap();
            gradients(&[out], &[q])
        };
        let (one, two, plain) = (run(1, false), run(2, false), run(1, true));
        for ((one, two), plain) in one.iter().zip(&two).zip(&plain) {
            assert!(same_bits(&one.1, &two.1), "{kind:?} {}", one.0);
            let bound = if kind == Kind::Float { FP32_TWIN } else { BF16_TWIN };
            assert!(distance(&one.1, &plain.1) <= bound, "{kind:?} {}", one.0);
        }
        let looks_ahead = one[0].1.narrow(1, 0, n).triu(1).count_nonzero(None::<i64>);
        assert_eq!(looks_ahead.int64_value(&[]), 0);
    }
}

/// A row that ends inside a vector has the bits of the same row in a longer block: softmax and its backward pass.
#[test]
fn a_row_has_the_same_bits_however_many_keys_stand_behind_it() {
    let _turn = Turn::take();
    for kind in [Kind::Float, Kind::BFloat16] {
        let q = random(1, &[2, 64, 64]) * 4.0;
        let run = |n: i64| {
            let unit = Tensor::eye(n, (kind, Device::Cpu)).repeat([2, 1, 1]);
            let q = q.narrow(1, 0, n).narrow(2, 0, n).to_kind(kind).copy().set_requires_grad(true);
            let out = ops::attention(&q, &unit, &unit, 0.7).unwrap();
            let weigh = random(2, &[2, 64, 64]).narrow(1, 0, n).narrow(2, 0, n).to_kind(kind);
            let dq = grad(&[out.shallow_clone()], &[weigh], &[&q]).unwrap().remove(0).unwrap();
            [out.detach(), dq]
        };
        let whole = run(64);
        for n in [1, 2, 15, 16, 17, 31, 40, 63] {
            for (part, whole) in run(n).iter().zip(&whole) {
                let whole = whole.narrow(1, 0, n).narrow(2, 0, n);
                assert!(same_bits(part, &whole), "{kind:?} {n}");
            }
        }
    }
}

#[test]
fn large_scores_neither_overflow_nor_look_ahead() {
    let _turn = Turn::take();
    for kind in [Kind::Float, Kind::BFloat16] {
        let (q, k, v) = (
            random(1, &[2, 20, 8]) * 100.0,
            random(2, &[2, 20, 8]) * 100.0,
            random(3, &[2, 20, 4]),
        );
        let [q, k, v] = [q, k, v].map(|x| x.to_kind(kind));
        let out = ops::attention(&q, &k, &v, 1.0).unwrap();
        assert_eq!(out.isfinite().all().int64_value(&[]), 1);
        // Position 0 sees itself only, whatever stands behind it.
        assert!(same_bits(&out.narrow(1, 0, 1), &v.narrow(1, 0, 1)));
        let (mut k2, mut v2) = (k.copy(), v.copy());
        let _changed = (k2.narrow(1, 10, 10).fill_(7.0), v2.narrow(1, 10, 10).fill_(-3.0));
        (k2, v2) = (k2.detach(), v2.detach());
        let other = ops::attention(&q, &k2, &v2, 1.0).unwrap();
        assert!(same_bits(&out.narrow(1, 0, 10), &other.narrow(1, 0, 10)));
        assert!(!same_bits(&out, &other));
    }
}

#[test]
fn attention_keeps_what_is_not_a_number() {
    let _turn = Turn::take();
    for kind in [Kind::Float, Kind::BFloat16] {
        let [q, k, v] = [1, 2, 3].map(|seed| random(seed, &[1, 6, 8]).to_kind(kind));
        let _broken = k.narrow(1, 4, 1).narrow(2, 0, 1).fill_(f64::NAN);
        let out = ops::attention(&q, &k, &v, 0.3).unwrap().isnan().any_dim(2, false);
        let rows = Vec::<bool>::try_from(out.flatten(0, -1)).unwrap();
        assert_eq!(rows, [false, false, false, false, true, true], "{kind:?}");
    }
}

#[test]
fn mla_pack_equals_its_twins() {
    let _turn = Turn::take();
    let grid = [
        (1, 1, 1, 2, 2, 2),
        (2, 5, 3, 4, 6, 5),
        (1, 65, 2, 16, 8, 12),
        (3, 33, 4, 7, 2, 9),
        (2, 70, 4, 32, 16, 24),
    ];
    for (batch, sequence, heads, nope, rope, value) in grid {
        let (tokens, head) = (batch * sequence, nope + rope);
        let (cos, sin) = angles(sequence + 3, rope / 2);
        let size = |x: i64| usize::try_from(x).unwrap();
        let sizes = ops::Mla {
            sequence: size(sequence),
            heads: size(heads),
            nope: size(nope),
            rope: size(rope),
            value: size(value),
        };
        // As in the model: queries and rotary keys are columns of one wider product.
        let split = |x: &[Tensor]| {
            (x[0].narrow(1, 0, heads * head), x[0].narrow(1, heads * head + 1, rope))
        };
        Case {
            name: format!("mla_pack {sizes:?} x {batch}"),
            inputs: vec![
                compute(random(1, &[tokens, heads * head + rope + 2])),
                compute(random(2, &[tokens, heads * (nope + value)])),
            ],
            weights: vec![],
            call: |x: &[Tensor], _: &[Tensor], _: &Sink| {
                let (q, k_rope) = split(x);
                ops::mla_pack(&q, &x[1], &k_rope, (&cos, &sin), sizes).unwrap().into()
            },
            formula: |x: &[Tensor], _: &[Tensor]| {
                let (q, k_rope) = split(x);
                let four = |x: &Tensor, h: i64| x.reshape([batch, sequence, h, -1]);
                let rotate = |x: &Tensor| rotated(x, (&cos, &sin), true);
                let (q, kv, k_rope) = (four(&q, heads), four(&x[1], heads), four(&k_rope, 1));
                let q = Tensor::cat(&[q.narrow(3, 0, nope), rotate(&q.narrow(3, nope, rope))], 3);
                let shared = rotate(&k_rope).repeat([1, 1, heads, 1]);
                let k = Tensor::cat(&[kv.narrow(3, 0, nope), shared], 3);
                vec![heads_first(&q), heads_first(&k), heads_first(&kv.narrow(3, nope, value))]
            },
        }
        .check_values_and_bits();
    }
}

#[test]
fn gqa_pack_equals_its_twins_in_both_rope_styles() {
    let _turn = Turn::take();
    let grid =
        [(1, 1, 1, 1, 2), (2, 5, 4, 2, 6), (1, 65, 3, 1, 16), (3, 33, 4, 4, 10), (2, 70, 6, 3, 24)];
    for (batch, sequence, heads, kv_heads, d) in grid {
        for interleaved in [false, true] {
            let (cos, sin) = angles(sequence + 1, d / 2);
            let size = |x: i64| usize::try_from(x).unwrap();
            let sizes = ops::Gqa {
                sequence: size(sequence),
                heads: size(heads),
                kv_heads: size(kv_heads),
                head_dim: size(d),
                interleaved,
            };
            Case {
                name: format!("gqa_pack {sizes:?} x {batch}"),
                inputs: vec![compute(random(1, &[batch * sequence, (heads + 2 * kv_heads) * d]))],
                weights: vec![],
                call: |x: &[Tensor], _: &[Tensor], _: &Sink| {
                    ops::gqa_pack(&x[0], (&cos, &sin), sizes).unwrap().into()
                },
                formula: |x: &[Tensor], _: &[Tensor]| {
                    let all = x[0].view([batch, sequence, heads + 2 * kv_heads, d]);
                    let part = |first: i64, count: i64| all.narrow(2, first, count);
                    let rotate = |x: &Tensor| rotated(x, (&cos, &sin), interleaved);
                    vec![
                        heads_first(&rotate(&part(0, heads))),
                        heads_first(&rotate(&part(heads, kv_heads))),
                        heads_first(&part(heads + kv_heads, kv_heads)),
                    ]
                },
            }
            .check_values_and_bits();
        }
    }
}
