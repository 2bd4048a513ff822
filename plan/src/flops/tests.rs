use super::*;
use crate::fixture;
use crate::inventory::{Inventory, Kind};

/// Two operations per element of every matrix that a token meets, attention core aside: counted from the inventory, which
/// is written independently of the formulas here.
#[test]
fn linear_operations_are_twice_the_active_matrices() {
    let spec = fixture::plan().model;
    let flops = ForwardFlops::per_token(&spec, 64);
    let inventory = Inventory::new(&spec);
    let moe = spec.moe.as_ref().unwrap();
    let used = |mtp: bool| -> u64 {
        let in_part = |layer: Option<usize>| layer.is_some_and(|l| l >= spec.layers) == mtp;
        let active = |kind: &Kind| match kind {
            Kind::Expert { expert } => *expert < moe.experts_per_token,
            Kind::Embedding | Kind::Norm => false,
            _ => true,
        };
        let matrices = inventory.parameters.iter().filter(|p| in_part(p.layer) && active(&p.kind));
        2 * matrices.map(|p| p.elements() as u64).sum::<u64>()
    };
    assert_eq!(flops.main() - flops.attention_core, used(false));
    // The MTP layer uses the head once more, and its own attention core.
    let head = inventory.find("head").unwrap().elements() as u64;
    let core = flops.attention_core / spec.layers as u64;
    assert_eq!(flops.mtp, used(true) + 2 * head + core);
}

#[test]
fn attention_core_grows_with_the_sequence() {
    let spec = fixture::plan().model;
    let core = |s| ForwardFlops::per_token(&spec, s).attention_core;
    // 3 layers, 4 heads, 16 + 8 + 16 wide, 2 operations, S/2 positions.
    assert_eq!(core(64), 3 * 4 * 40 * 64);
    assert_eq!(core(128), 2 * core(64));
}
