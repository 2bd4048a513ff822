use super::*;
use crate::build::Rank;
use lampyris_plan::model_spec::{Attention, ModelSpec, Rope};
use lampyris_plan::train_plan::Compute;
use tch::{Device, Kind, Tensor};

/// The table of one rank has one place per parameter, with the square of its norm.
#[test]
fn a_rank_that_holds_everything_fills_a_place_per_parameter() {
    let _no_grad = tch::no_grad_guard();
    let spec = ModelSpec {
        vocab_size: 512,
        hidden: 32,
        layers: 1,
        ffn_hidden: 64,
        norm_eps: 1e-6,
        init_std: 0.02,
        tie_embeddings: false,
        max_positions: 8,
        attention: Attention::Gqa { heads: 2, kv_heads: 1, head_dim: 16 },
        rope: Rope { theta: 1e4, interleaved: false, yarn: None },
        moe: None,
        mtp_layers: 0,
    };
    let rank = Rank::alone(&spec, 8, Compute::Fp32, Device::Cpu).expect("a network");
    let inventory = rank.share.inventory();
    for parameter in &inventory.parameters {
        let mut gradient = rank.state.gradients.of(parameter.id).expect("held").shallow_clone();
        let _filled = gradient.fill_((parameter.id + 1) as f64);
    }
    let table = table(&rank.state).expect("summed");
    assert_eq!(table.len(), inventory.parameters.len());
    for (parameter, found) in inventory.parameters.iter().zip(rank.share.norm().sums(&table)) {
        let value = (parameter.id + 1) as f64;
        let wanted = value * value * parameter.elements() as f64;
        assert_eq!(found, wanted, "{}", parameter.name);
    }
    let whole = Tensor::from_slice(&table).sum(Kind::Double).double_value(&[]);
    assert!(whole > 0.0);
}
