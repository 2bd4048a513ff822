use super::*;
use crate::fixture;
use crate::mesh::Mesh;
use crate::program::{Shape, overlapped, sequential};

/// A network with experts and its buckets on rank 0 of a layout of 4 ranks, 2 of them sharing experts.
fn network() -> (Graph, Inventory, Buckets, Shape) {
    let spec = fixture::plan().model;
    let (graph, inventory) = (Graph::new(&spec), Inventory::new(&spec));
    let mesh = Mesh { data: 4, expert: 2 };
    let buckets = Buckets::new(&inventory, 64 << 10, |id| mesh.holds(0, &inventory, id));
    assert!(buckets.buckets.len() > 3);
    (graph, inventory, buckets, Shape { micro_batches: 8, leaves: 1, mesh, sharded: true })
}

fn exchanges(instruction: &Instruction) -> bool {
    matches!(instruction, Instruction::Dispatch { .. } | Instruction::Combine { .. })
}

#[test]
fn without_transfers_a_step_is_its_computation() {
    let (graph, inventory, buckets, shape) = network();
    for program in [sequential, overlapped] {
        let program = program(&graph, &inventory, &buckets, &shape);
        let one = |_: &Instruction| Cost { compute_s: 1.0, transfer_s: 0.0 };
        let found = bound(&program, (&graph, &inventory, &buckets), one);
        let instructions = program.instructions.len() as f64;
        assert_eq!(found, Bound { step_s: instructions, compute_s: instructions, transfer_s: 0.0 });
        assert!((found.hidden() - 1.0).abs() < 1e-12);
    }
}

#[test]
fn without_computation_a_step_is_its_transfers() {
    let (graph, inventory, buckets, shape) = network();
    let program = sequential(&graph, &inventory, &buckets, &shape);
    let rows =
        |i: &Instruction| Cost { compute_s: 0.0, transfer_s: if exchanges(i) { 1.0 } else { 0.0 } };
    let found = bound(&program, (&graph, &inventory, &buckets), rows);
    let count = program.instructions.iter().filter(|i| exchanges(i)).count() as f64;
    assert_eq!(found, Bound { step_s: count, compute_s: 0.0, transfer_s: count });
}

/// Segments of one second, exchanges of two: in turns with another micro-batch most of them disappear.
#[test]
fn overlap_hides_exchanges() {
    let (graph, inventory, buckets, shape) = network();
    let cost = |i: &Instruction| match i {
        Instruction::Forward { .. } | Instruction::Backward { .. } => {
            Cost { compute_s: 1.0, transfer_s: 0.0 }
        }
        _ if exchanges(i) => Cost { compute_s: 0.0, transfer_s: 1.5 },
        _ => Cost::default(),
    };
    let of = |program: Program| bound(&program, (&graph, &inventory, &buckets), cost);
    let off = of(sequential(&graph, &inventory, &buckets, &shape));
    let on = of(overlapped(&graph, &inventory, &buckets, &shape));
    assert_eq!((on.compute_s, on.transfer_s), (off.compute_s, off.transfer_s));
    assert!(on.hidden() > 0.8 && off.hidden() < 0.6, "{} {}", on.hidden(), off.hidden());
}

/// A reduction flies under the backward pass that follows it; only the last bucket's is seen. A gather flies under the
/// next forward pass.
#[test]
fn reductions_and_gathers_fly_under_segments() {
    let (graph, inventory, buckets, shape) = network();
    let program = sequential(&graph, &inventory, &buckets, &shape);
    let cost = |i: &Instruction| match i {
        Instruction::Forward { .. } | Instruction::Backward { .. } => {
            Cost { compute_s: 1.0, transfer_s: 0.0 }
        }
        Instruction::ReduceBucket { .. } => Cost { compute_s: 0.0, transfer_s: 0.5 },
        _ => Cost::default(),
    };
    let found = bound(&program, (&graph, &inventory, &buckets), cost);
    assert!(found.transfer_s >= 0.5 * 4.0);
    // Buckets that are complete at the same instruction queue up.
    assert!(found.step_s - found.compute_s <= 1.0, "{found:?}");
}
