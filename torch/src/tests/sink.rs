//! What the sink holds after a backward pass, and `grad` itself.

use super::*;
use crate::ops;

/// Parameter ids of entries, with the kind of each.
fn ids(entries: &[WeightGradient]) -> Vec<(usize, char)> {
    let id = |entry: &WeightGradient| match entry {
        WeightGradient::Matmul { parameter, .. } => (*parameter, 'm'),
        WeightGradient::Direct { parameter, .. } => (*parameter, 'd'),
        WeightGradient::Embedding { parameter, .. } => (*parameter, 'e'),
    };
    entries.iter().map(id).collect()
}

#[test]
fn entries_come_in_the_order_of_backward_once_each() {
    let _turn = Turn::take();
    let mut sink = Sink::new();
    let anchor = Tensor::zeros([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let weight = |seed: u64, shape: &[i64]| random(seed, shape).to_kind(Kind::Float);
    let (table, norm) = (weight(1, &[9, 6]), weight(2, &[6]));
    let (a, b, c) = (weight(3, &[8, 6]), weight(4, &[5, 4]), weight(5, &[5, 4]));
    let x = ops::embedding((&table, 0), &whole(6, &[7], 0, 9), &anchor, &sink).unwrap();
    let x = ops::norm_linear(&x, (&norm, 1), 1e-6, (&a, 2), &sink).unwrap();
    let x = ops::swiglu(&x, None).unwrap();
    let x = ops::grouped_linear(&x, &[(&b, 3), (&c, 4), (&b, 5)], &[0, 3, 3, 7], &sink).unwrap();
    let y = ops::rms_norm(&x, (&weight(7, &[5]), 6), 1e-6, &sink).unwrap();
    assert!(sink.drain().is_empty(), "forward leaves nothing");
    let found = grad(&[y.shallow_clone()], &[y.ones_like()], &[&anchor]).unwrap();
    assert!(found[0].is_none(), "the anchor only makes autograd come by");
    let entries = sink.drain();
    assert_eq!(ids(&entries), [(6, 'd'), (3, 'm'), (5, 'm'), (1, 'd'), (2, 'm'), (0, 'e')]);
    let WeightGradient::Matmul { x, dy, .. } = &entries[2] else { unreachable!() };
    assert_eq!((x.size(), dy.size()), (vec![4, 4], vec![4, 5]));
    assert!(sink.drain().is_empty(), "drain takes everything");
}

/// Weights take no part in autograd: a backward pass that does not reach an operation leaves no entry.
#[test]
fn an_operation_beside_the_path_to_the_inputs_is_not_visited() {
    let _turn = Turn::take();
    let mut sink = Sink::new();
    let float = |seed: u64, shape: &[i64]| random(seed, shape).to_kind(Kind::Float);
    let (leaf, w) = (float(1, &[2, 3]).set_requires_grad(true), float(2, &[3, 3]));
    let other = float(3, &[2, 3]).set_requires_grad(true);
    let y =
        ops::linear(&leaf, (&w, 0), &sink).unwrap() + ops::linear(&other, (&w, 1), &sink).unwrap();
    let found = grad(&[y.shallow_clone()], &[y.ones_like()], &[&leaf]).unwrap();
    assert!(found[0].is_some());
    assert_eq!(ids(&sink.drain()), [(0, 'm')]);
    // So an embedding beside a leaf takes that leaf as its anchor.
    let table = float(4, &[5, 3]);
    let rows = ops::embedding((&table, 2), &whole(5, &[2], 0, 5), &leaf, &sink).unwrap();
    let y = ops::linear(&leaf, (&w, 0), &sink).unwrap() + rows;
    let found = grad(&[y.shallow_clone()], &[y.ones_like()], &[&leaf]).unwrap();
    let want = y.ones_like().matmul(&w);
    assert!(same_bits(found[0].as_ref().unwrap(), &want), "the anchor adds nothing");
    let mut entries = ids(&sink.drain());
    entries.sort_unstable();
    assert_eq!(entries, [(0, 'm'), (2, 'e')]);
}

#[test]
fn grad_weighs_outputs_and_tells_what_nothing_depends_on() {
    let _turn = Turn::take();
    let leaf = |x: f64| Tensor::from(x).set_requires_grad(true);
    let (a, b, c) = (leaf(2.0), leaf(3.0), leaf(5.0));
    let outputs = [&a * &b, &a * &a];
    let weights = [Tensor::from(10.0), Tensor::from(1.0)];
    let found = grad(&outputs, &weights, &[&a, &b, &c]).unwrap();
    let value = |i: usize| found[i].as_ref().map(|x| x.double_value(&[]));
    assert_eq!([value(0), value(1), value(2)], [Some(34.0), Some(20.0), None]);
}
