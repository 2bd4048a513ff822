use super::*;
use crate::fixture;
use crate::model_spec::*;
use crate::share::Shares;
use crate::train_plan::TrainPlan;

pub(super) fn spec() -> ModelSpec {
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

/// The tree that the folds build, as text.
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

/// The network on ranks, each with this many micro-batches of one leaf or several.
pub(super) fn plan(data: usize, expert: usize, zero: usize, micro_batches: usize) -> TrainPlan {
    let mut plan = fixture::plan();
    plan.model = spec();
    (plan.parallel.data, plan.parallel.expert, plan.parallel.zero) = (data, expert, zero);
    (plan.batch.micro_batch, plan.batch.global_batch) = (1, micro_batches * data);
    plan
}

/// The step of one rank, with small buckets.
pub(super) fn one_rank(micro_batches: usize, leaves: usize) -> StepShape {
    let mut plan = plan(1, 1, 0, micro_batches);
    (plan.batch.leaves, plan.parallel.bucket_bytes) = (leaves, 4096);
    Shares::of(&plan).rank(0).step_shape(micro_batches)
}

/// The step of a rank of four that share experts in pairs and the optimizer's state, with one bucket of each kind.
pub(super) fn sharded(micro_batches: usize) -> StepShape {
    let mut plan = plan(4, 2, 1, micro_batches);
    plan.batch.leaves = 4;
    Shares::of(&plan).rank(1).step_shape(micro_batches)
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
    let mut two_leaves = plan(1, 1, 0, 2);
    two_leaves.batch.leaves = 2;
    let shape = Shares::of(&two_leaves).rank(0).step_shape(2);
    golden("sequential", &chart(&Program::sequential(&shape)));
    golden("sharded", &chart(&Program::sequential(&sharded(1))));
    golden("overlapped", &chart(&Program::overlapped(&sharded(3))));
}

/// What each instruction frees, of a network of one layer with experts.
#[test]
fn values_are_freed_after_their_last_use() {
    let mut plan = plan(1, 1, 0, 1);
    (plan.model.layers, plan.model.mtp_layers, plan.batch.leaves) = (1, 0, 1);
    plan.model.moe.as_mut().expect("experts").first_dense_layers = 0;
    let program = Program::sequential(&Shares::of(&plan).rank(0).step_shape(1));
    let line = |instruction: &Instruction| {
        let frees: Vec<String> = instruction.frees.iter().map(Value::to_string).collect();
        let line = format!("{:<34}{}", instruction.act.to_string(), frees.join(", "));
        format!("{}\n", line.trim_end())
    };
    golden("frees", &program.instructions.iter().map(line).collect::<String>());
}

/// A bucket is reduced once, after its last fold, and gathered once, after its update; experts whose replicas are all
/// on one rank are summed over their sources, but not over ranks, and not gathered.
#[test]
fn reductions_and_gathers_follow_the_mesh() {
    for (data, expert, zero) in [(2, 1, 1), (4, 2, 1), (4, 4, 1), (4, 4, 0)] {
        let mut plan = plan(data, expert, zero, 2);
        (plan.batch.leaves, plan.parallel.bucket_bytes) = (2 * data, 4096);
        let share = Shares::of(&plan).rank(0);
        let shape = share.step_shape(2);
        for program in [Program::sequential(&shape), Program::overlapped(&shape)] {
            let all = |wanted: Act| -> Vec<usize> {
                let at = program.acts().enumerate().filter(|(_, act)| *act == wanted);
                at.map(|(at, _)| at).collect()
            };
            for bucket in &share.buckets().buckets {
                let (bucket, group) = (bucket.id, bucket.group);
                let experts = group == crate::inventory::Group::Expert;
                let alone = experts && data == expert;
                let reduced = all(Act::Start(Transfer::Reduce { bucket }));
                assert_eq!(reduced.len(), usize::from(!alone));
                let merged = all(Act::Run(Task::MergeSources { bucket }));
                assert_eq!(merged.len(), usize::from(experts && expert > 1));
                let folded = all(Act::Run(Task::FoldLeaf { bucket, leaf: 1 }))[0];
                assert!(merged.iter().chain(&reduced).all(|at| *at > folded));
                let gathered = all(Act::Start(Transfer::Gather { bucket }));
                assert_eq!(gathered.len(), usize::from(zero == 1 && !alone));
                let updated = all(Act::Run(Task::UpdateShard { bucket }))[0];
                assert!(gathered.iter().all(|at| *at > updated));
            }
        }
    }
}

/// Both orders have the same acts.
#[test]
fn overlap_leaves_nothing_out() {
    for (micro_batches, leaves) in [(1, 1), (2, 1), (2, 2), (4, 2), (8, 8)] {
        let shape = one_rank(micro_batches, leaves);
        let sorted = |program: Program| {
            let mut acts: Vec<Act> = program.acts().collect();
            acts.sort_unstable();
            acts
        };
        let plain = sorted(Program::sequential(&shape));
        assert_eq!(plain, sorted(Program::overlapped(&shape)));
    }
}

/// Between the start of an exchange and the first instruction that waits for it there is long computation: attention,
/// experts or a head of the other micro-batch, or the experts' weight gradients. Only the first micro-batch's forward and
/// the last one's backward pass have no other beside them.
#[test]
fn every_exchange_flies_under_computation() {
    let program = Program::overlapped(&one_rank(4, 1));
    let all = &program.instructions;
    for (at, instruction) in all.iter().enumerate() {
        let Act::Start(transfer @ Transfer::Rows { micro, pass, .. }) = instruction.act else {
            continue;
        };
        let alone = if pass == Pass::Forward { micro == 0 } else { micro == 3 };
        let until = all.iter().position(|i| i.needs.contains(&transfer)).expect("needed");
        let long = |i: &Instruction| match i.act {
            Act::Run(Task::Loss { micro: other, .. }) => other != micro,
            Act::Run(
                Task::Forward { micro: other, segment } | Task::Backward { micro: other, segment },
            ) => {
                let long = matches!(segment, Segment::Attention(_) | Segment::Experts(_));
                other != micro && long
            }
            Act::Run(Task::Weight { segment, .. }) => matches!(segment, Segment::Experts(_)),
            _ => false,
        };
        assert!(alone || all[at..until].iter().any(long), "{transfer}");
    }
}

/// Folds of a leaf of a bucket begin only when their parameters are complete: the checker knows. Here: each bucket folds
/// once per leaf, in order.
#[test]
fn each_bucket_folds_once_per_leaf() {
    let shape = one_rank(4, 2);
    assert!(shape.buckets.len() > 4);
    for program in [Program::sequential(&shape), Program::overlapped(&shape)] {
        for bucket in 0..shape.buckets.len() {
            let fold = |act: Act| match act {
                Act::Run(Task::FoldLeaf { bucket: b, leaf }) if b == bucket => Some(leaf),
                _ => None,
            };
            assert_eq!(program.acts().filter_map(fold).collect::<Vec<_>>(), [0, 1]);
        }
    }
}

#[test]
fn a_forward_pass_ends_before_the_segment_that_is_named() {
    let graph = Graph::new(&spec());
    let whole = Program::forward(&graph, None);
    let heads = graph.depths();
    assert_eq!(whole.instructions.len(), graph.forward().len() - heads);
    let main = Program::forward(&graph, Some(Segment::Head(0)));
    let last = main.acts().last().expect("acts");
    assert_eq!(last, Act::Run(Task::Forward { micro: 0, segment: Segment::FinalNorm }));
    let kept = Value::Slot { micro: 0, slot: Slot::Final };
    assert!(main.instructions.iter().all(|i| !i.frees.contains(&kept)));
    check_forward(&main, &graph).expect("a program without mistakes");
}

#[test]
fn every_parameter_has_a_reader_and_the_embedding_has_all_of_its() {
    let (graph, inventory) = (Graph::new(&spec()), crate::Inventory::new(&spec()));
    let forward = graph.forward();
    for parameter in &inventory.parameters {
        let segments = &parameter.segments;
        let places: Vec<usize> = segments
            .iter()
            .map(|s| forward.iter().position(|op| *op == Operation::Segment(*s)).expect("in graph"))
            .collect();
        assert!(places.is_sorted(), "{} {segments:?}", parameter.name);
        match parameter.kind {
            crate::inventory::Kind::Embedding => assert_eq!(segments.len(), 2, "{segments:?}"),
            crate::inventory::Kind::Head => assert_eq!(segments.len(), graph.depths()),
            _ => assert_eq!(segments.len(), 1, "{}", parameter.name),
        }
    }
    let tied = ModelSpec { tie_embeddings: true, ..spec() };
    let embedding = &crate::Inventory::new(&tied).parameters[0].segments;
    let wanted = [Segment::Embed, Segment::Head(0), Segment::MtpInput(2), Segment::Head(1)];
    assert_eq!(*embedding, wanted);
}

/// Acts of different micro-batches that take the same time are the same.
#[test]
fn acts_are_alike_whatever_their_micro_batch() {
    let program = Program::overlapped(&sharded(3));
    let (first, last): (Vec<Act>, Vec<Act>) = {
        let of = |micro| program.acts().filter(move |act| act.micro() == Some(micro));
        (of(0).map(Act::alike).collect(), of(2).map(Act::alike).collect())
    };
    let sorted = |mut acts: Vec<Act>| {
        acts.sort_unstable();
        acts
    };
    assert_eq!(sorted(first), sorted(last));
}

/// The rank, the time bound, the chart and the peak of memory go through one program: an instruction that moves is seen by
/// all of them.
#[test]
fn a_reordered_instruction_is_seen_by_every_machine() {
    use crate::timeline::{Cost, bound};
    let shape = sharded(3);
    let program = Program::overlapped(&shape);
    let experts = Act::Run(Task::Weight { micro: 0, segment: Segment::Experts(2), leaf: 0 });
    let mut order: Vec<Act> = program.acts().collect();
    let from = order.iter().position(|act| *act == experts).expect("in the program");
    let act = order.remove(from);
    let norm = order.iter().position(|act| *act == Act::Run(Task::MergeSources { bucket: 2 }));
    order.insert(norm.expect("in the program") - 1, act);
    let moved = depend(order, &shape.graph, &shape.buckets, shape.micro_batches);
    assert_ne!(chart(&moved), chart(&program));
    let cost = |act: Act| match act {
        Act::Run(Task::Weight { .. }) => Cost { compute_s: 1.0, transfer_s: 0.0 },
        Act::Start(_) => Cost { compute_s: 0.0, transfer_s: 1.0 },
        Act::Run(_) => Cost::default(),
    };
    assert_ne!(bound(&moved, cost).step_s, bound(&program, cost).step_s);
    assert!(matches!(check(&moved, &shape), Err(Mistake::OutOfOrder { .. })));
}
