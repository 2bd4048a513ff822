//! Every kernel and custom function three ways: fused, as plain ATen operations, and as its formula in fp64 through
//! torch's own autograd; forward, input gradients and the weight gradients that arrive in the sink; with one thread and
//! with two.

mod attention;
mod functions;
mod refusals;
mod rows;
mod sink;

use crate::{Sink, WeightGradient, grad, plain_only};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tch::{Device, Kind, Tensor};

/// Largest relative difference of two fp32 paths (they add in different orders).
const FP32_TWIN: f64 = 3e-6;
/// The same against fp64.
const FP32_FORMULA: f64 = 5e-6;
/// One unit in the last place of bf16: where two fp32 sums fall on both sides of a rounding boundary.
const BF16_TWIN: f64 = 1.0 / 128.0;
/// bf16 against fp64 on the same inputs: intermediate values are rounded to 8 bits up to four times.
const BF16_FORMULA: f64 = 1.0 / 50.0;

/// Two sizes of every row kernel are larger than the 16 Ki elements that are worth a second thread.
const SHAPES: [(i64, i64); 9] =
    [(1, 1), (1, 7), (3, 16), (2, 33), (64, 16), (65, 24), (130, 47), (65, 288), (400, 130)];

/// The choice of kernels and the number of threads belong to the process: tests that set them take turns.
struct Turn(#[expect(dead_code, reason = "held until the turn is over")] MutexGuard<'static, ()>);

impl Turn {
    fn take() -> Turn {
        static LOCK: Mutex<()> = Mutex::new(());
        // A failed test leaves nothing behind that the next one does not set itself.
        let turn = Turn(LOCK.lock().unwrap_or_else(PoisonError::into_inner));
        plain_only(false);
        tch::set_num_threads(1);
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        plain_only(false);
    }
}

/// About normal numbers that bf16 holds exactly, fp64: every precision starts from the same values.
fn random(seed: u64, shape: &[i64]) -> Tensor {
    let count: i64 = shape.iter().product();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) as f64 / u64::MAX as f64 - 0.5
    };
    let mut normal = || (uniform() + uniform() + uniform()) * 2.0;
    let values: Vec<f64> = (0..count).map(|_| to_bf16(normal())).collect();
    Tensor::from_slice(&values).view(shape)
}

fn to_bf16(x: f64) -> f64 {
    f64::from(f32::from_bits((x as f32).to_bits() & 0xffff_0000))
}

/// Whole numbers in `[low, high)`.
fn whole(seed: u64, shape: &[i64], low: i64, high: i64) -> Tensor {
    let spread = random(seed, shape).abs() * 1e4;
    spread.to_kind(Kind::Int64).remainder(high - low) + low
}

/// max|a - b| / max|b|; max|a| where b is all zero.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    if a.numel() == 0 {
        return 0.0;
    }
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    let top = b.abs().max().double_value(&[]);
    (a - b).abs().max().double_value(&[]) / if top == 0.0 { 1.0 } else { top }
}

/// Bit for bit, NaN included.
fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    let bits = |x: &Tensor| {
        x.contiguous().view_dtype(match x.kind() {
            Kind::BFloat16 => Kind::Int16,
            Kind::Float => Kind::Int,
            _ => Kind::Int64,
        })
    };
    a.kind() == b.kind() && a.size() == b.size() && bits(a).equal(&bits(b))
}

/// An argument of an operation.
struct Value {
    fp64: Tensor,
    /// fp32 whatever the compute type is.
    fp32: bool,
}

/// In compute type.
fn compute(fp64: Tensor) -> Value {
    Value { fp64, fp32: false }
}

/// Always fp32.
fn fp32(fp64: Tensor) -> Value {
    Value { fp64, fp32: true }
}

impl Value {
    fn at(&self, kind: Kind) -> Tensor {
        let kind = if self.fp32 && kind == Kind::BFloat16 { Kind::Float } else { kind };
        self.fp64.to_kind(kind).copy()
    }
}

/// Outputs and gradients by name.
type Results = Vec<(String, Tensor)>;

/// An operation with its arguments and its formula.
struct Case<F, G> {
    name: String,
    /// Take part in autograd.
    inputs: Vec<Value>,
    /// Get their gradients through the sink; weight i has id `10 + i`.
    weights: Vec<Value>,
    /// The operation under test.
    call: F,
    /// The same from torch's own operations.
    formula: G,
}

impl<F, G> Case<F, G>
where
    F: Fn(&[Tensor], &[Tensor], &Sink) -> Vec<Tensor>,
    G: Fn(&[Tensor], &[Tensor]) -> Vec<Tensor>,
{
    /// Compares all three, in fp32 and bf16, with one thread and two.
    fn check_values(&self) {
        self.check(false);
    }

    /// The same for what is made of our kernels alone: there two threads give the bits of one. (A matrix product does not,
    /// so the number of threads is part of the numerics fingerprint.)
    fn check_values_and_bits(&self) {
        self.check(true);
    }

    fn check(&self, bits: bool) {
        let formula = self.by_formula();
        for (kind, twin, exact) in
            [(Kind::Float, FP32_TWIN, FP32_FORMULA), (Kind::BFloat16, BF16_TWIN, BF16_FORMULA)]
        {
            let fused = self.run(kind, false, 1);
            let plain = self.run(kind, true, 1);
            let threaded = self.run(kind, false, 2);
            self.close(&fused, &plain, twin, &format!("{kind:?} fused and plain"));
            self.close(&fused, &formula, exact, &format!("{kind:?} fused and fp64"));
            self.close(&threaded, &formula, exact, &format!("{kind:?} two threads and fp64"));
            for ((what, one), (_, two)) in fused.iter().zip(&threaded).filter(|_| bits) {
                let name = &self.name;
                assert!(same_bits(one, two), "{name} {kind:?} {what}: bits depend on the threads");
            }
        }
    }

    fn close(&self, a: &Results, b: &Results, bound: f64, paths: &str) {
        assert_eq!(a.len(), b.len());
        for ((what, a), (_, b)) in a.iter().zip(b) {
            let distance = distance(a, b);
            assert!(distance <= bound, "{} {what}, {paths}: {distance:e}", self.name);
        }
    }

    fn run(&self, kind: Kind, plain: bool, threads: i32) -> Results {
        let inputs: Vec<Tensor> = self.inputs.iter().map(|v| v.at(kind)).collect();
        self.run_on(inputs, kind, plain, threads)
    }

    fn run_on(&self, inputs: Vec<Tensor>, kind: Kind, plain: bool, threads: i32) -> Results {
        plain_only(plain);
        tch::set_num_threads(threads);
        let mut sink = Sink::new();
        let leaves: Vec<Tensor> = inputs.into_iter().map(|x| x.set_requires_grad(true)).collect();
        let weights: Vec<Tensor> = self.weights.iter().map(|v| v.at(kind)).collect();
        let outputs = (self.call)(&leaves, &weights, &sink);
        let mut results = gradients(&outputs, &leaves);
        let mut sums: Vec<Tensor> =
            weights.iter().map(|w| w.zeros_like().to_kind(Kind::Double)).collect();
        for entry in sink.drain() {
            let (parameter, gradient) = dense(entry, &sums);
            sums[parameter - 10] += gradient;
        }
        results.extend(sums.into_iter().enumerate().map(|(i, sum)| (format!("dw{i}"), sum)));
        plain_only(false);
        tch::set_num_threads(1);
        results
    }

    fn by_formula(&self) -> Results {
        let leaf = |v: &Value| v.fp64.copy().set_requires_grad(true);
        let inputs: Vec<Tensor> = self.inputs.iter().map(leaf).collect();
        let weights: Vec<Tensor> = self.weights.iter().map(leaf).collect();
        let outputs = (self.formula)(&inputs, &weights);
        let leaves: Vec<Tensor> =
            inputs.iter().chain(&weights).map(Tensor::shallow_clone).collect();
        gradients(&outputs, &leaves)
    }
}

/// Outputs, and gradients of their sum weighted with fixed numbers; zeros for a leaf on which nothing depends.
fn gradients(outputs: &[Tensor], leaves: &[Tensor]) -> Results {
    let fixed =
        |(i, out): (usize, &Tensor)| random(900 + i as u64, &out.size()).to_kind(out.kind());
    let grad_outputs: Vec<Tensor> = outputs.iter().enumerate().map(fixed).collect();
    let wanted: Vec<&Tensor> = leaves.iter().collect();
    let found = grad(outputs, &grad_outputs, &wanted).expect("backward runs");
    let outputs = outputs.iter().enumerate().map(|(i, out)| (format!("out{i}"), out.detach()));
    let found = found.into_iter().zip(leaves).enumerate().map(|(i, (gradient, leaf))| {
        (format!("d{i}"), gradient.unwrap_or_else(|| leaf.detach().zeros_like()))
    });
    outputs.chain(found).collect()
}

/// The parameter and the gradient that a sink entry stands for, fp64.
fn dense(entry: WeightGradient, shapes: &[Tensor]) -> (usize, Tensor) {
    let double = |x: Tensor| x.to_kind(Kind::Double);
    match entry {
        WeightGradient::Matmul { parameter, x, dy } => {
            (parameter, double(dy).tr().matmul(&double(x)))
        }
        WeightGradient::Direct { parameter, gradient } => {
            assert_eq!(gradient.kind(), Kind::Float);
            (parameter, double(gradient))
        }
        WeightGradient::Embedding { parameter, ids, dy } => {
            let rows = shapes[parameter - 10].zeros_like();
            (parameter, rows.index_add(0, &ids, &double(dy)))
        }
    }
}

fn zeros(shape: &[i64]) -> Tensor {
    Tensor::zeros(shape, (Kind::Double, Device::Cpu))
}
