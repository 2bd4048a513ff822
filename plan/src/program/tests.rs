use super::*;
use crate::model_spec::*;
use std::collections::HashMap;

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

/// One instruction a line; every second micro-batch stands to the right.
fn chart(program: &Program) -> String {
    let line = |i: &Instruction| match i {
        Instruction::Forward { micro, .. }
        | Instruction::Backward { micro, .. }
        | Instruction::Weight { micro, .. }
        | Instruction::Dispatch { micro, .. }
        | Instruction::Combine { micro, .. }
            if micro % 2 == 1 =>
        {
            format!("{:36}{i}\n", "")
        }
        _ => format!("{i}\n"),
    };
    program.instructions.iter().map(line).collect()
}

fn golden(name: &str, text: &str) {
    let path = format!("{}/testdata/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).expect("golden is writable");
    }
    assert_eq!(text, std::fs::read_to_string(&path).expect("golden exists"));
}

#[test]
fn the_program_reads_like_the_paper() {
    let (graph, inventory) = (Graph::new(&spec()), Inventory::new(&spec()));
    let buckets = Buckets::new(&inventory, 1 << 20, |_| true);
    let plain = |program: Program| -> String {
        program.instructions.iter().map(|i| format!("{i}\n")).collect()
    };
    let one = Shape::one_rank(2, 2);
    golden("sequential", &plain(sequential(&graph, &inventory, &buckets, &one)));
    let mesh = Mesh { data: 4, expert: 2 };
    let buckets = Buckets::new(&inventory, 1 << 20, |id| mesh.holds(1, &inventory, id));
    let shape = Shape { micro_batches: 1, leaves: 1, mesh, sharded: true };
    golden("sharded", &plain(sequential(&graph, &inventory, &buckets, &shape)));
    let shape = Shape { micro_batches: 3, ..shape };
    golden("overlapped", &chart(&overlapped(&graph, &inventory, &buckets, &shape)));
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
        for program in [sequential, overlapped] {
            let program = program(&graph, &inventory, &buckets, &shape);
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
                assert!(
                    gathered.iter().all(|at| *at > all(Instruction::UpdateShard { bucket })[0])
                );
            }
        }
    }
}

/// What an instruction adds to gradients: the micro-batch and the segment.
fn contribution(instruction: &Instruction) -> Option<(usize, Segment)> {
    match *instruction {
        Instruction::Weight { micro, segment }
        | Instruction::Forward { micro, segment: segment @ Segment::Head(_) } => {
            Some((micro, segment))
        }
        _ => None,
    }
}

/// Equal bits: every parameter but the embedding belongs to one segment, whose contributions come in the order of
/// micro-batches; those to the embedding have their order; and each goes to its leaf.
#[test]
fn overlap_changes_no_sum() {
    let (graph, inventory) = (Graph::new(&spec()), Inventory::new(&spec()));
    let buckets = Buckets::new(&inventory, 4096, |_| true);
    for (micro_batches, leaves) in [(1, 1), (2, 1), (2, 2), (4, 2), (8, 8)] {
        let shape = Shape::one_rank(micro_batches, leaves);
        let plain = sequential(&graph, &inventory, &buckets, &shape);
        let mixed = overlapped(&graph, &inventory, &buckets, &shape);
        assert_eq!(plain.instructions.len(), mixed.instructions.len());
        let mut open = None;
        let mut folded = 0;
        for instruction in &mixed.instructions {
            match instruction {
                Instruction::BeginLeaf { leaf } => {
                    assert_eq!(folded, leaf * buckets.buckets.len(), "folds of the leaf before");
                    open = Some(*leaf);
                }
                Instruction::FoldLeaf { leaf, .. } => {
                    assert_eq!(open, Some(*leaf));
                    folded += 1;
                }
                _ => {}
            }
            if let Some((micro, _)) = contribution(instruction) {
                assert_eq!(open, Some(micro / (micro_batches / leaves)));
            }
        }
        let embedding = |program: &Program| -> Vec<(usize, Segment)> {
            let all = program.instructions.iter().filter_map(contribution);
            let of =
                |s: &Segment| matches!(s, Segment::Head(_) | Segment::MtpInput(_) | Segment::Embed);
            all.filter(|(_, segment)| of(segment)).collect()
        };
        assert_eq!(embedding(&plain), embedding(&mixed));
        let mut next: HashMap<Segment, usize> = HashMap::new();
        for (micro, segment) in mixed.instructions.iter().filter_map(contribution) {
            let next = next.entry(segment).or_default();
            assert_eq!(micro, *next, "{segment}");
            *next += 1;
        }
    }
}

/// Every instruction finds what it reads: values of its micro-batch's forward pass, gradients of all readers.
#[test]
fn programs_respect_the_graph() {
    let (graph, inventory) = (Graph::new(&spec()), Inventory::new(&spec()));
    let buckets = Buckets::new(&inventory, 4096, |_| true);
    let shape = Shape::one_rank(4, 2);
    for program in [sequential, overlapped] {
        let program = program(&graph, &inventory, &buckets, &shape);
        let (mut forwards, mut backwards) = (Vec::new(), Vec::new());
        for instruction in &program.instructions {
            let (micro, operation, pass) = match *instruction {
                Instruction::Forward { micro, segment } => {
                    (micro, Operation::Segment(segment), Pass::Forward)
                }
                Instruction::Backward { micro, segment } => {
                    (micro, Operation::Segment(segment), Pass::Backward)
                }
                Instruction::Dispatch { micro, layer, pass } => {
                    (micro, Operation::Dispatch(layer), pass)
                }
                Instruction::Combine { micro, layer, pass } => {
                    (micro, Operation::Combine(layer), pass)
                }
                Instruction::Weight { micro, segment } => {
                    assert!(backwards.contains(&(micro, Operation::Segment(segment))));
                    continue;
                }
                _ => continue,
            };
            if pass == Pass::Forward {
                for slot in graph.reads(operation) {
                    let writer = |op: &Operation| graph.writes(*op).contains(&slot);
                    let writer = graph.forward().into_iter().find(writer).expect("written");
                    assert!(forwards.contains(&(micro, writer)), "{instruction}");
                }
                forwards.push((micro, operation));
            } else {
                assert!(forwards.contains(&(micro, operation)), "{instruction}");
                for reader in graph.writes(operation).into_iter().flat_map(|s| graph.readers(s)) {
                    assert!(backwards.contains(&(micro, reader)), "{instruction}");
                }
                backwards.push((micro, operation));
            }
        }
        let all = graph.forward().len() * shape.micro_batches;
        assert_eq!((forwards.len(), backwards.len()), (all, all));
    }
}

/// Between the start of an exchange and the first instruction that needs it there is long computation: attention,
/// experts or a head of the other micro-batch, or the experts' weight gradients. Only the first micro-batch's forward and
/// the last one's backward pass have no other beside them.
#[test]
fn every_exchange_flies_under_computation() {
    let (graph, inventory) = (Graph::new(&spec()), Inventory::new(&spec()));
    let buckets = Buckets::new(&inventory, 1 << 20, |_| true);
    let program = overlapped(&graph, &inventory, &buckets, &Shape::one_rank(4, 1));
    let all = &program.instructions;
    for (at, instruction) in all.iter().enumerate() {
        let (micro, pass, reader) = match *instruction {
            Instruction::Dispatch { micro, layer, pass: pass @ Pass::Forward } => {
                (micro, pass, Segment::Experts(layer))
            }
            Instruction::Dispatch { micro, layer, pass } => {
                (micro, pass, Segment::Attention(layer))
            }
            Instruction::Combine { micro, layer, pass: pass @ Pass::Forward } => {
                (micro, pass, Segment::Merge(layer))
            }
            Instruction::Combine { micro, layer, pass } => (micro, pass, Segment::Experts(layer)),
            _ => continue,
        };
        let (needs, alone) = match pass {
            Pass::Forward => (Instruction::Forward { micro, segment: reader }, micro == 0),
            Pass::Backward => (Instruction::Backward { micro, segment: reader }, micro == 3),
        };
        let until = all.iter().position(|i| *i == needs).expect("needed");
        let long = |i: &Instruction| match i {
            Instruction::Forward { micro: other, segment }
            | Instruction::Backward { micro: other, segment } => {
                *other != micro
                    && matches!(
                        segment,
                        Segment::Attention(_) | Segment::Experts(_) | Segment::Head(_)
                    )
            }
            Instruction::Weight { segment, .. } => matches!(segment, Segment::Experts(_)),
            _ => false,
        };
        assert!(alone || all[at..until].iter().any(long), "{instruction}");
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
