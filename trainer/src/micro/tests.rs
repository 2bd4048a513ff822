use super::*;
use lampyris_plan::model_spec::{Attention, Gate, ModelSpec, Moe, Rope};
use lampyris_plan::segments::Exchange;
use tch::Kind;

/// A dense layer, and one with experts and a shared expert.
fn graph() -> Arc<Graph> {
    Arc::new(Graph::new(&ModelSpec {
        vocab_size: 32,
        hidden: 8,
        layers: 2,
        ffn_hidden: 8,
        norm_eps: 1e-6,
        init_std: 0.02,
        tie_embeddings: false,
        max_positions: 8,
        attention: Attention::Gqa { heads: 1, kv_heads: 1, head_dim: 8 },
        rope: Rope { theta: 1e4, interleaved: false, yarn: None },
        moe: Some(Moe {
            experts: 4,
            experts_per_token: 2,
            shared_experts: 1,
            expert_hidden: 8,
            first_dense_layers: 1,
            gate: Gate::SigmoidBias,
            groups: 2,
            groups_per_token: 1,
            routed_scale: 1.0,
            bias_update_speed: 0.0,
            balance_loss: 0.0,
        }),
        mtp_layers: 0,
    }))
}

const ATTENTION: Operation = Operation::Segment(Segment::Attention(0));
const FEED_FORWARD: Operation = Operation::Segment(Segment::FeedForward(0));
/// The readers of `Normed(1)`.
const DISPATCH: Operation = Operation::Exchange(Exchange::Dispatch(1));
const SHARED: Operation = Operation::Segment(Segment::Shared(1));

fn number(value: f64) -> Tensor {
    Tensor::from(value).to_kind(Kind::Float)
}

#[test]
fn a_slot_is_written_once_and_read_by_all_its_readers() {
    let mut micro = Micro::new(&graph());
    micro.write(ATTENTION, vec![number(1.0), number(2.0)]);
    let read: Vec<f64> = micro.read(FEED_FORWARD).iter().map(|x| x.double_value(&[])).collect();
    assert_eq!(read, [1.0, 2.0]);
    let leaves = micro.leaves(FEED_FORWARD);
    assert!(leaves.iter().all(Tensor::requires_grad));
    micro.free(Value::Slot { micro: 0, slot: Slot::Residual(0) });
    assert!(!micro.is_empty());
    micro.free(Value::Slot { micro: 0, slot: Slot::Normed(0) });
    assert!(micro.is_empty());
}

#[test]
#[should_panic(expected = "before it is read")]
fn what_was_freed_cannot_be_read() {
    let mut micro = Micro::new(&graph());
    micro.write(ATTENTION, vec![number(1.0), number(2.0)]);
    micro.free(Value::Slot { micro: 0, slot: Slot::Residual(0) });
    let _read = micro.read(FEED_FORWARD);
}

#[test]
fn a_gradient_is_the_sum_of_what_all_readers_give_whoever_came_first() {
    assert_eq!(graph().readers(Slot::Normed(1)), [DISPATCH, SHARED]);
    for dispatch_first in [true, false] {
        let mut micro = Micro::new(&graph());
        let dispatch = vec![Some(number(1.0)), Some(number(8.0))];
        let mut contributions = vec![(DISPATCH, dispatch), (SHARED, vec![Some(number(2.0))])];
        if !dispatch_first {
            contributions.reverse();
        }
        for (reader, gradients) in contributions {
            micro.contribute(reader, gradients);
        }
        assert_eq!(micro.gradient(Slot::Normed(1)).expect("given").double_value(&[]), 3.0);
        assert_eq!(micro.gradient(Slot::RouteWeights(1)).expect("given").double_value(&[]), 8.0);
        assert!(micro.is_empty());
    }
}

/// A reader whose outputs do not depend on the slot is something else than one that has not run.
#[test]
fn no_gradient_is_an_answer() {
    let mut micro = Micro::new(&graph());
    micro.contribute(FEED_FORWARD, vec![None, Some(number(1.0))]);
    assert!(micro.gradient(Slot::Residual(0)).is_none());
    assert!(micro.gradient(Slot::Normed(0)).is_some());
}

#[test]
#[should_panic(expected = "dispatch.1 has not contributed to Normed(1)")]
fn a_missing_contribution_is_named() {
    let mut micro = Micro::new(&graph());
    micro.contribute(SHARED, vec![Some(number(1.0))]);
    let _gradient = micro.gradient(Slot::Normed(1));
}

#[test]
#[should_panic(expected = "nobody contributes to Trunk")]
fn a_gradient_that_nobody_gave_is_named() {
    let _gradient = Micro::new(&graph()).gradient(Slot::Trunk);
}

#[test]
fn a_choice_begins_a_route_and_weight_gradients_wait_for_their_instruction() {
    let mut micro = Micro::new(&graph());
    micro.choose(1, vec![0, 3]);
    assert_eq!(micro.route(1).expect("chosen").chosen, [0, 3]);
    assert!(micro.route(0).is_none());
    let segment = Segment::Attention(0);
    let gradient = WeightGradient::Direct { parameter: 3, gradient: number(1.0) };
    micro.queue_weight_gradients(segment, vec![gradient]);
    micro.queue_weight_gradients(Segment::Merge(1), Vec::new());
    assert_eq!(micro.take_weight_gradients(segment).len(), 1);
    assert_eq!(micro.take_weight_gradients(segment).len(), 0);
    micro.free(Value::Route { micro: 0, layer: 1 });
    assert!(micro.is_empty());
}
