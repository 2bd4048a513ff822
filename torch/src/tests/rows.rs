//! Operations without autograd: rows between tokens and experts, cross entropy, AdamW, sums of squares, rounding.

use super::*;
use crate::ops;

/// The same call fused and plain, with one thread and two.
fn both(f: impl Fn() -> Tensor) -> (Tensor, Tensor) {
    let fused = f();
    tch::set_num_threads(2);
    assert!(same_bits(&fused, &f()), "bits depend on the threads");
    tch::set_num_threads(1);
    plain_only(true);
    let plain = f();
    plain_only(false);
    (fused, plain)
}

#[test]
fn gather_rows_copies_rows_and_leaves_zeros_for_padding() {
    let _turn = Turn::take();
    for kind in [Kind::Float, Kind::BFloat16] {
        for (rows, cols) in SHAPES {
            let x = random(1, &[rows, cols]).to_kind(kind);
            let source = whole(2, &[2 * rows + 1], -1, rows);
            let (fused, plain) = both(|| ops::gather_rows(&x, &source).unwrap());
            assert!(same_bits(&fused, &plain), "{kind:?} [{rows}, {cols}]");
            let padding = source.lt(0).nonzero().flatten(0, -1);
            assert_eq!(
                fused.index_select(0, &padding).count_nonzero(None::<i64>).int64_value(&[]),
                0
            );
        }
    }
    let none = Tensor::from_slice(&[0i64; 0]);
    assert_eq!(
        ops::gather_rows(&Tensor::from_slice(&[1f32, 2.0]).view([1, 2]), &none).unwrap().size(),
        [0, 2]
    );
}

/// The order of additions, word by word: partial sums inside a run of equal groups, then the partial sums.
fn sum_in_order(rows: &Tensor, position: &Tensor, group: &Tensor) -> Tensor {
    let (tokens, slots) = position.size2().unwrap();
    let cols = rows.size()[1];
    let values = Vec::<f32>::try_from(rows.to_kind(Kind::Float).flatten(0, -1)).unwrap();
    let mut out = Vec::new();
    for t in 0..tokens {
        for c in 0..cols {
            let (mut total, mut k) = (0f32, 0);
            while k < slots {
                let (mut partial, open) = (0f32, group.int64_value(&[t, k]));
                while k < slots && group.int64_value(&[t, k]) == open {
                    let at = position.int64_value(&[t, k]) * cols + c;
                    partial += values[usize::try_from(at).unwrap()];
                    k += 1;
                }
                total += partial;
            }
            out.push(total);
        }
    }
    Tensor::from_slice(&out).view([tokens, cols]).to_kind(rows.kind())
}

#[test]
fn sum_rows_adds_in_the_order_of_groups_and_slots() {
    let _turn = Turn::take();
    for kind in [Kind::Float, Kind::BFloat16] {
        for (tokens, slots, cols) in [(1, 1, 1), (3, 2, 16), (65, 8, 33), (5, 3, 300), (60, 6, 257)]
        {
            let rows = random(1, &[tokens * slots + 5, cols]).to_kind(kind);
            let position = whole(2, &[tokens, slots], 0, tokens * slots + 5);
            let group = whole(3, &[tokens, slots], 0, 4).sort(1, false).0;
            let (fused, plain) = both(|| ops::sum_rows(&rows, &position, &group).unwrap());
            assert!(same_bits(&fused, &plain), "{kind:?} [{tokens}, {slots}, {cols}]");
            assert!(same_bits(&fused, &sum_in_order(&rows, &position, &group)));
        }
    }
}

#[test]
fn cross_entropy_gives_loss_and_gradient() {
    let _turn = Turn::take();
    for (rows, vocab) in SHAPES.into_iter().filter(|&(_, vocab)| vocab > 1) {
        let (start, targets) = (random(1, &[rows, vocab]) * 3.0, whole(2, &[rows], -1, vocab));
        let scale = 1.0 / 37.0;
        let leaf = start.copy().set_requires_grad(true);
        let valid = targets.ge(0).to_kind(Kind::Double);
        let picked =
            leaf.log_softmax(-1, None).gather(1, &targets.clamp_min(0).unsqueeze(1), false);
        let loss = -picked.squeeze_dim(1) * valid;
        let gradient = grad(&[loss.sum(None)], &[Tensor::from(scale)], &[&leaf]).unwrap().remove(0);
        let gradient = gradient.unwrap();
        for (kind, twin, exact) in
            [(Kind::Float, FP32_TWIN, FP32_FORMULA), (Kind::BFloat16, BF16_TWIN, BF16_FORMULA)]
        {
            let run = |gradients: bool| {
                let logits = start.to_kind(kind).copy();
                let loss = ops::cross_entropy(&logits, &targets, scale).unwrap();
                assert_eq!(loss.kind(), Kind::Float);
                if gradients { logits } else { loss }
            };
            for (gradients, want) in [(false, &loss), (true, &gradient)] {
                let (fused, plain) = both(|| run(gradients));
                let name = format!("cross_entropy [{rows}, {vocab}] {kind:?} {gradients}");
                assert!(distance(&fused, &plain) <= twin, "{name}");
                assert!(distance(&fused, &want.detach()) <= exact, "{name}");
            }
        }
    }
}

/// Logits of -inf add nothing: a row that ends inside a vector has the bits of one that goes on with them.
#[test]
fn cross_entropy_of_a_row_has_the_same_bits_with_impossible_tokens_behind_it() {
    let _turn = Turn::take();
    for kind in [Kind::Float, Kind::BFloat16] {
        for vocab in [1, 5, 15, 16, 17, 33, 47] {
            let short = (random(1, &[9, vocab]) * 3.0).to_kind(kind);
            let long = short.constant_pad_nd([0, 48 - vocab]);
            let _impossible = long.narrow(1, vocab, 48 - vocab).fill_(f64::NEG_INFINITY);
            let targets = whole(2, &[9], -1, vocab);
            let [short_loss, long_loss] =
                [&short, &long].map(|x| ops::cross_entropy(x, &targets, 0.3).unwrap());
            assert!(same_bits(&short_loss, &long_loss), "{kind:?} {vocab}");
            assert!(same_bits(&short, &long.narrow(1, 0, vocab)), "{kind:?} {vocab}");
            let rest = long.narrow(1, vocab, 48 - vocab).count_nonzero(None::<i64>);
            assert_eq!(rest.int64_value(&[]), 0, "{kind:?} {vocab}");
        }
    }
}

#[test]
fn cross_entropy_bears_large_logits_and_passes_on_what_is_not_a_number() {
    let _turn = Turn::take();
    let logits =
        Tensor::from_slice(&[1e4f32, -1e4, 0.0, -1e4, 1e4, 0.0, 1.0, f32::NAN, 0.0]).view([3, 3]);
    let loss = ops::cross_entropy(&logits, &Tensor::from_slice(&[0i64, 0, 2]), 1.0).unwrap();
    let loss = Vec::<f32>::try_from(loss).unwrap();
    assert_eq!(loss[..2], [0.0, 2e4]);
    assert!(loss[2].is_nan());
    let gradient = Vec::<f32>::try_from(logits.flatten(0, -1)).unwrap();
    assert_eq!(gradient[..6], [0.0, 0.0, 0.0, -1.0, 1.0, 0.0]);
    assert!(gradient[6..].iter().all(|x| x.is_nan()));
}

const ADAMW: ops::AdamW = ops::AdamW {
    lr: 3e-3,
    beta1: 0.9,
    beta2: 0.95,
    eps: 1e-8,
    weight_decay: 0.1,
    step: 1,
    grad_scale: 0.7,
};

/// Three steps on n elements: master, moments and copy.
fn adamw(n: i64, copy: bool) -> Vec<Tensor> {
    let master = random(1, &[n]).to_kind(Kind::Float);
    let (m, v) = (master.zeros_like(), master.zeros_like());
    let low = master.zeros_like().to_kind(Kind::BFloat16);
    for step in 1..=3 {
        let gradient = (random(10 + step, &[n]) * 1e-2).to_kind(Kind::Float);
        let args = ops::AdamW { step, ..ADAMW };
        ops::adamw([&master, &m, &v], &gradient, copy.then_some(&low), &args).unwrap();
    }
    vec![master, m, v, low]
}

/// The algorithm of the paper (1711.05101) in fp64.
fn adamw_formula(n: i64) -> Vec<Tensor> {
    let a = ADAMW;
    let (mut master, mut m, mut v) = (random(1, &[n]), zeros(&[n]), zeros(&[n]));
    for step in 1..=3 {
        let g = random(10 + step as u64, &[n]) * 1e-2 * a.grad_scale;
        m = m * a.beta1 + &g * (1.0 - a.beta1);
        v = v * a.beta2 + g.square() * (1.0 - a.beta2);
        let m_hat = &m / (1.0 - a.beta1.powi(step));
        let v_hat = &v / (1.0 - a.beta2.powi(step));
        master = &master - (m_hat / (v_hat.sqrt() + a.eps) + &master * a.weight_decay) * a.lr;
    }
    vec![master, m, v]
}

#[test]
fn adamw_equals_its_twins() {
    let _turn = Turn::take();
    for n in [1, 7, 16, 33, 1000, 40_000] {
        for (i, want) in adamw_formula(n).iter().enumerate() {
            let (fused, plain) = both(|| adamw(n, true)[i].shallow_clone());
            assert!(distance(&fused, &plain) <= 1e-6, "{n} {i}");
            assert!(distance(&fused, want) <= 2e-6, "{n} {i}: {:e}", distance(&fused, want));
        }
        let state = adamw(n, true);
        assert!(same_bits(&state[3], &state[0].to_kind(Kind::BFloat16)));
        assert!(same_bits(&state[0], &adamw(n, false)[0]), "the copy changes nothing");
        assert_eq!(adamw(n, false)[3].count_nonzero(None::<i64>).int64_value(&[]), 0);
    }
}

#[test]
fn adamw_gives_an_element_the_same_bits_wherever_it_stands() {
    let _turn = Turn::take();
    let n = 45;
    let arrays = |first: i64, count: i64| {
        let part = |seed: u64| {
            random(seed, &[n]).abs().narrow(0, first, count).to_kind(Kind::Float).copy()
        };
        let (state, gradient) = ([part(1), part(2), part(3)], part(4));
        let copy = gradient.to_kind(Kind::BFloat16);
        let [master, m, v] = &state;
        ops::adamw([master, m, v], &gradient, Some(&copy), &ops::AdamW { step: 7, ..ADAMW })
            .unwrap();
        let [master, m, v] = state;
        [master, m, v, copy]
    };
    let whole = arrays(0, n);
    for (first, count) in (0..n).map(|i| (i, 1)).chain([(0, 17), (3, 31), (13, 32)]) {
        for (part, whole) in arrays(first, count).iter().zip(&whole) {
            assert!(same_bits(part, &whole.narrow(0, first, count)), "{count} from {first}");
        }
    }
}

/// A step of length zero writes `bf16(master)` into the copy.
fn rounded(values: &[f32]) -> Tensor {
    let master = Tensor::from_slice(values);
    let (m, v) = (master.zeros_like(), master.zeros_like());
    let copy = master.zeros_like().to_kind(Kind::BFloat16);
    let still = ops::AdamW { lr: 0.0, ..ADAMW };
    ops::adamw([&master, &m, &v], &m.zeros_like(), Some(&copy), &still).unwrap();
    copy
}

#[test]
fn bf16_rounds_to_nearest_and_ties_to_even() {
    let _turn = Turn::take();
    let cases: [(u32, i16); 12] = [
        (0x3f80_0000, 0x3f80),           // 1
        (0x3f80_8000, 0x3f80),           // tie, down to even
        (0x3f81_8000, 0x3f82),           // tie, up to even
        (0x3f80_8001, 0x3f81),           // just above a tie
        (0x3f80_7fff, 0x3f80),           // just below
        (0xbf81_8000, 0xbf82u16 as i16), // sign
        (0x3fff_ffff, 0x4000),           // carry into the exponent
        (0x7f7f_ffff, 0x7f80),           // overflow
        (0x7f80_0000, 0x7f80),           // infinity
        (0x0000_8000, 0x0000),           // tie of a subnormal
        (0x0001_8000, 0x0002),
        (0x8000_0000, 0x8000u16 as i16), // minus zero
    ];
    let values: Vec<f32> = cases.iter().map(|c| f32::from_bits(c.0)).collect();
    let got = Vec::<i16>::try_from(rounded(&values).view_dtype(Kind::Int16)).unwrap();
    assert_eq!(got, cases.map(|c| c.1));
    let nan = rounded(&[f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(0xffff_ffff)]);
    assert_eq!(nan.isnan().all().int64_value(&[]), 1);
    // Against torch's own rounding on numbers of all magnitudes.
    let many: Vec<f32> = (0..50_000u32)
        .map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9)))
        .filter(|x| !x.is_nan())
        .collect();
    assert!(same_bits(&rounded(&many), &Tensor::from_slice(&many).to_kind(Kind::BFloat16)));
}

#[test]
fn square_sum_is_exact_to_fp64_and_independent_of_threads() {
    let _turn = Turn::take();
    for n in [0, 1, 7, 8, 33, 4096, 4097, 200_003] {
        let x = (random(1, &[n]) * 1e-3).to_kind(Kind::Float);
        let want = x.to_kind(Kind::Double).square().sum(None).double_value(&[]);
        let got = ops::square_sum(&x).unwrap();
        assert!((got - want).abs() <= 1e-13 * want, "{n}: {got} {want}");
        tch::set_num_threads(2);
        assert_eq!(got.to_bits(), ops::square_sum(&x).unwrap().to_bits(), "{n}");
        tch::set_num_threads(1);
        plain_only(true);
        assert!((got - ops::square_sum(&x).unwrap()).abs() <= 1e-13 * want, "{n}");
        plain_only(false);
    }
    // Squares that fp32 cannot hold, and one bad element.
    let large = Tensor::from_slice(&[1e30f32, -1e30, 1e-30]);
    let sum = ops::square_sum(&large).unwrap();
    assert!((sum / (2.0 * f64::from(1e30f32).powi(2)) - 1.0).abs() < 1e-15);
    let broken = Tensor::from_slice(&[1f32; 100]);
    let _filled = broken.narrow(0, 99, 1).fill_(f64::NAN);
    assert!(ops::square_sum(&broken).unwrap().is_nan());
}
