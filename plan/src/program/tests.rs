use super::*;
use crate::model_spec::*;

fn spec() -> ModelSpec {
    ModelSpec {
        vocab_size: 32,
        hidden: 16,
        layers: 2,
        ffn_hidden: 24,
        norm_eps: 1e-6,
        init_std: 0.02,
        tie_embeddings: false,
        max_positions: 64,
        attention: Attention::Mla {
            heads: 2,
            q_rank: Some(8),
            kv_rank: 8,
            nope_dim: 4,
            rope_dim: 4,
            v_dim: 4,
        },
        rope: Rope { theta: 1e4, interleaved: true, yarn: None },
        moe: Some(Moe {
            experts: 4,
            experts_per_token: 2,
            shared_experts: 1,
            expert_hidden: 8,
            first_dense_layers: 1,
            gate: Gate::SigmoidBias,
            groups: 2,
            groups_per_token: 1,
            routed_scale: 2.5,
            bias_update_speed: 1e-3,
            balance_loss: 1e-4,
        }),
        mtp_layers: 1,
    }
}

/// The tree that the instructions `BeginLeaf` and `FoldLeaf` build, as text.
fn folded(leaves: usize) -> String {
    let mut accumulators = vec![String::new(); leaves.ilog2() as usize + 1];
    for leaf in 0..leaves {
        let mut top = accumulator_of(leaf);
        accumulators[top] = leaf.to_string();
        for _ in 0..folds_after(leaf) {
            accumulators[top - 1] = format!("({}+{})", accumulators[top - 1], accumulators[top]);
            top -= 1;
        }
    }
    accumulators[0].clone()
}

#[test]
fn leaves_are_summed_as_a_balanced_tree() {
    assert_eq!(folded(1), "0");
    assert_eq!(folded(2), "(0+1)");
    assert_eq!(folded(4), "((0+1)+(2+3))");
    assert_eq!(folded(8), "(((0+1)+(2+3))+((4+5)+(6+7)))");
}

#[test]
fn every_slot_is_written_before_it_is_read() {
    let graph = Graph::new(&spec());
    let mut written = Vec::new();
    for operation in graph.forward() {
        for slot in graph.reads(operation) {
            assert!(written.contains(&slot), "{operation:?} reads {slot:?} too early");
        }
        written.extend(graph.writes(operation));
    }
}

#[test]
fn each_bucket_folds_once_per_leaf_after_its_last_contribution() {
    let (graph, inventory) = (Graph::new(&spec()), Inventory::new(&spec()));
    let buckets = Buckets::new(&inventory, 4096, |_| true);
    assert!(buckets.buckets.len() > 4);
    let program = sequential(&graph, &inventory, &buckets, &Shape::one_rank(4, 2));
    for bucket in &buckets.buckets {
        let folds = |i: &&Instruction| matches!(i, Instruction::FoldLeaf { bucket: b, .. } if *b == bucket.id);
        assert_eq!(program.instructions.iter().filter(folds).count(), 2);
        let at = program.instructions.iter().rposition(|i| folds(&i)).expect("folds");
        for placement in &bucket.placements {
            let segment = owner(&inventory, &graph, placement.parameter);
            let later = &program.instructions[at..];
            assert!(!later.contains(&Instruction::Weight { micro: 3, segment }), "{segment}");
        }
    }
}

fn golden(name: &str, program: &Program) {
    let text: String = program.instructions.iter().map(|i| format!("{i}\n")).collect();
    let path = format!("{}/testdata/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &text).expect("golden is writable");
    }
    assert_eq!(text, std::fs::read_to_string(&path).expect("golden exists"));
}

#[test]
fn the_program_reads_like_the_paper() {
    let (graph, inventory) = (Graph::new(&spec()), Inventory::new(&spec()));
    let buckets = Buckets::new(&inventory, 1 << 20, |_| true);
    golden("sequential", &sequential(&graph, &inventory, &buckets, &Shape::one_rank(2, 2)));
    let mesh = Mesh { data: 4, expert: 2 };
    let buckets = Buckets::new(&inventory, 1 << 20, |id| mesh.holds(1, &inventory, id));
    let shape = Shape { micro_batches: 1, leaves: 1, mesh, sharded: true };
    golden("sharded", &sequential(&graph, &inventory, &buckets, &shape));
}

/// A bucket is reduced once, after its last fold, and gathered once, after its update; experts whose replicas are all
/// on one rank are summed over their sources, but not gathered.
#[test]
fn reductions_and_gathers_follow_the_mesh() {
    let (graph, inventory) = (Graph::new(&spec()), Inventory::new(&spec()));
    for (data, expert, sharded) in [(2, 1, true), (4, 2, true), (4, 4, true), (4, 4, false)] {
        let mesh = Mesh { data, expert };
        let buckets = Buckets::new(&inventory, 4096, |id| mesh.holds(0, &inventory, id));
        let shape = Shape { micro_batches: 2, leaves: 2, mesh, sharded };
        let program = sequential(&graph, &inventory, &buckets, &shape);
        let all = |wanted: Instruction| -> Vec<usize> {
            let at = program.instructions.iter().enumerate().filter(|(_, i)| **i == wanted);
            at.map(|(at, _)| at).collect()
        };
        for Bucket { id: bucket, group, .. } in &buckets.buckets {
            let bucket = *bucket;
            let reduced = all(Instruction::ReduceBucket { bucket });
            assert_eq!(reduced.len(), 1);
            assert!(reduced[0] > all(Instruction::FoldLeaf { bucket, leaf: 1 })[0]);
            let gathered = all(Instruction::GatherBucket { bucket });
            let alone = *group == Group::Expert && data == expert;
            assert_eq!(gathered.len(), usize::from(sharded && !alone));
            assert!(gathered.iter().all(|at| *at > all(Instruction::UpdateShard { bucket })[0]));
        }
    }
}

#[test]
fn every_parameter_has_a_reader_and_the_embedding_has_all_of_its() {
    let (graph, inventory) = (Graph::new(&spec()), Inventory::new(&spec()));
    let buckets = Buckets::new(&inventory, 1, |_| true);
    for bucket in &buckets.buckets {
        let segments = readers(bucket, &inventory, &graph);
        let name = &inventory.parameters[bucket.placements[0].parameter].name;
        match name.as_str() {
            "embedding" => assert!(segments.len() > 1, "{segments:?}"),
            "head" => assert_eq!(segments.len(), graph.depths()),
            _ => assert_eq!(segments.len(), 1, "{name}"),
        }
    }
}
