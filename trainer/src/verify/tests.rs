//! The layout grid, and planted bugs that a comparison must find.

use super::*;
use crate::planted::{Bug, plant};
use lampyris_plan::train_plan::{Compute, MuonPlan};

/// A V3-style network with MTP, or a dense one, small as it is; eight micro-batches, four leaves.
fn plan(moe: bool, compute: Compute) -> TrainPlan {
    let recipe = if moe { "debug_moe" } else { "debug_llama" };
    let path = format!("{}/../recipes/{recipe}.toml", env!("CARGO_MANIFEST_DIR"));
    let here = std::env::temp_dir();
    let defaults = lampyris_recipes::Defaults {
        runs_dir: here.clone(),
        cache_dir: here.clone(),
        current_dir: here,
    };
    let kind = if compute == Compute::Fp32 { "fp32" } else { "bf16" };
    let mut sets: Vec<String> =
        ["batch.leaves=4", "batch.micro_batch=2", "batch.global_batch=16"].map(String::from).into();
    sets.push(format!("compute=\"{kind}\""));
    if moe {
        sets.push("model.mtp_layers=1".to_string());
    }
    let plan = lampyris_recipes::load(std::path::Path::new(&path), &sets, &defaults);
    let (small, _) = shrink::shrink(&plan.expect("a recipe of the repository"));
    tch::set_num_threads(1);
    small
}

fn layout(data: usize, expert: usize, zero: usize, overlap: bool, nodes: usize) -> Layout {
    Layout { data, expert, zero, overlap, nodes }
}

/// The first difference of each layout; none is wanted.
fn assert_equal(plan: &TrainPlan, layouts: &[Layout]) {
    let alone = world::one_rank(plan, STEPS).unwrap();
    for &layout in layouts {
        let found = against(plan, layout, &alone).unwrap();
        let text = found.map(|found| found.text());
        assert_eq!(text, None, "{:?} {}", plan.compute, layout.text());
    }
}

/// Every value of data, expert, zero, overlap and nodes with every value of the others it can interfere with, though not
/// all at once: the full grid is in `every_layout_has_the_bits_of_one_rank`.
#[test]
fn layouts_have_the_bits_of_one_rank() {
    let covering = [
        layout(1, 1, 1, true, 1),
        layout(2, 1, 0, false, 2),
        layout(2, 2, 1, false, 1),
        layout(2, 2, 0, true, 2),
        layout(4, 1, 1, true, 2),
        layout(4, 2, 1, true, 1),
        layout(4, 2, 0, false, 2),
        layout(4, 4, 1, false, 2),
    ];
    assert_equal(&plan(true, Compute::Bf16), &covering);
    assert_equal(&plan(true, Compute::Fp32), &covering[4..6]);
    let dense = [layout(2, 1, 1, true, 1), layout(4, 1, 1, false, 2), layout(4, 1, 0, true, 1)];
    assert_equal(&plan(false, Compute::Fp32), &dense);
    assert_equal(&plan(false, Compute::Bf16), &dense[1..2]);
}

#[test]
#[ignore = "long: all layouts, dense and MoE, both types"]
fn every_layout_has_the_bits_of_one_rank() {
    for compute in [Compute::Fp32, Compute::Bf16] {
        for moe in [false, true] {
            let mut all = Vec::new();
            for (data, expert) in [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2), (4, 4)] {
                for (zero, overlap) in [(0, false), (0, true), (1, false), (1, true)] {
                    for nodes in [1, data.min(2)] {
                        all.push(layout(data, expert, zero, overlap, nodes));
                    }
                }
            }
            all.retain(|layout| moe || layout.expert == 1);
            all.dedup();
            assert_equal(&plan(moe, compute), &all);
        }
    }
}

/// Matrices have one owner each (zero 1) or are updated everywhere (zero 0); experts, MTP and stacked parameters among
/// them.
#[test]
fn muon_has_the_bits_of_one_rank() {
    let layouts = [
        layout(2, 1, 0, false, 1),
        layout(2, 2, 1, true, 2),
        layout(4, 1, 1, true, 1),
        layout(4, 2, 1, false, 2),
    ];
    for compute in [Compute::Fp32, Compute::Bf16] {
        let mut plan = plan(true, compute);
        plan.optimizer.muon = Some(MuonPlan { momentum: 0.95 });
        assert_equal(&plan, if compute == Compute::Fp32 { &layouts } else { &layouts[3..] });
    }
}

/// In fast mode sums have another order: gradients of the first step are near.
#[test]
fn fast_mode_is_within_its_bounds() {
    for compute in [Compute::Fp32, Compute::Bf16] {
        let mut plan = plan(true, compute);
        plan.batch.reduction = Reduction::Fast;
        assert_equal(&plan, &[layout(2, 1, 1, true, 2), layout(4, 2, 1, true, 1)]);
    }
}

/// The gates of a run do what the one-rank run's did, not what their own scores say.
#[test]
fn pinned_choices_are_taken_in_place_of_the_gates() {
    let plan = plan(true, Compute::Fp32);
    let mut choices = world::choices(&plan).unwrap();
    assert_eq!(choices.len(), plan.micro_batches());
    let moe = plan.model.moe.clone().unwrap();
    let layers: Vec<usize> =
        (0..plan.model.all_layers()).filter(|&layer| plan.model.is_moe_layer(layer)).collect();
    for of_micro in &choices {
        let mut found: Vec<usize> = of_micro.keys().copied().collect();
        found.sort_unstable();
        assert_eq!(found, layers, "a layer of each gate, those of MTP too");
    }
    let two = layout(2, 2, 1, true, 1).apply(&plan);
    let own = world::run(&two, 1, (1, None)).unwrap();
    let pinned = world::run(&two, 1, (1, Some(&choices))).unwrap();
    assert_eq!(own[0][0].losses, pinned[0][0].losses, "the same choice has the same bits");

    // In one micro-batch of the second rank every expert is replaced by its neighbour.
    let neighbour =
        |expert: &mut i64| *expert = (*expert + 1) % i64::try_from(moe.experts).unwrap();
    choices.last_mut().unwrap().values_mut().flatten().for_each(neighbour);
    let moved = world::run(&two, 1, (1, Some(&choices))).unwrap();
    assert_ne!(own[0][0].losses, moved[0][0].losses);
    assert_ne!(own[0][0].biases, moved[0][0].biases, "the counts are those of the given choice");
}

/// Ends the planting, whatever happens.
struct Planted;

impl Drop for Planted {
    fn drop(&mut self) {
        plant(None);
    }
}

#[test]
fn planted_bugs_are_found_and_named() {
    let plan = plan(true, Compute::Fp32);
    let alone = world::one_rank(&plan, STEPS).unwrap();
    let layout = layout(2, 2, 1, true, 1);
    let find = |bug| {
        let _ends = Planted;
        plant(bug);
        against(&plan, layout, &alone).unwrap().map(|found| (found.step, found.what, found.group))
    };
    assert_eq!(find(None), None, "the control run");
    let expected: [(Bug, usize, &str, Option<&str>); 9] = [
        (Bug::DropSource, 1, "gradient of layers.", Some("expert")),
        (Bug::CountTwice, 1, "the gradient norm", None),
        (Bug::LocalCounts, 1, "the gate bias of layer", None),
        (Bug::LocalLossScale, 1, "gradient of ", Some("dense")),
        (Bug::StaleWeights, 1, "weight of ", Some("dense")),
        (Bug::SwapRoutingWeights, 1, "the loss", None),
        (Bug::MissingMtp, 1, "gradient of ", Some("dense")),
        (Bug::OffByOneLeaf, 1, "gradient of ", Some("dense")),
        (Bug::ShiftedRows, 1, "gradient of ", Some("dense")),
    ];
    for (bug, step, what, group) in expected {
        let found = find(Some(bug));
        let named = found
            .as_ref()
            .is_some_and(|(at, name, of)| *at == step && name.starts_with(what) && *of == group);
        assert!(named, "{bug:?} is named {found:?}");
    }
}

#[test]
fn random_layouts_are_allowed_distinct_and_reproducible() {
    let plan = plan(true, Compute::Fp32);
    let all = Layout::random(&plan, 7, usize::MAX);
    assert_eq!(all, Layout::random(&plan, 7, usize::MAX));
    assert_ne!(all, Layout::random(&plan, 8, usize::MAX));
    assert_eq!(Layout::random(&plan, 7, 3), all[..3]);
    for (at, found) in all.iter().enumerate() {
        lampyris_plan::validate::validate(&found.apply(&plan)).unwrap();
        assert!(found.data.is_multiple_of(found.nodes));
        assert!(found.data > 1 && *found != Layout::of(&plan), "{found:?}");
        assert!(!all[..at].contains(found), "{found:?} twice");
    }
}

#[test]
fn fewer_layouts_than_asked_for_are_told() {
    let report = |asked, drawn| {
        let (recipe, shrunk, layouts) = ("tiny".into(), Vec::new(), Vec::new());
        Report { recipe, shrunk, layouts, asked, drawn }.text()
    };
    assert_eq!(report(3, 3), "tiny\n");
    let told = "  9 random layouts were asked for; the recipe allows 3 besides its own\n";
    assert_eq!(report(9, 3), format!("tiny\n{told}"));
}
