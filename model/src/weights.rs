//! Weights as the segments see them: one tensor per parameter, a view of its bucket.

use lampyris_plan::Inventory;
use lampyris_plan::inventory::ParameterId;
use lampyris_torch::ops::Weight;
use tch::Tensor;

/// One view per parameter of the inventory, in compute type or fp32 as its storage says.
#[derive(Debug)]
pub struct Weights {
    /// Views by parameter id.
    pub views: Vec<Tensor>,
}

impl Weights {
    /// The weight and the id under which its gradient arrives.
    pub fn get(&self, id: ParameterId) -> Weight<'_> {
        (&self.views[id], id)
    }
}

/// The id under which the weight gradient of `parameter` arrives that rows of source `source` make, in a network of
/// `parameters` parameters. Experts that serve several ranks keep the gradients of each rank's tokens apart, because each
/// belongs to a leaf of its own (docs/architecture.md, "Canonical reduction"); source 0 has the plain id.
pub fn sourced(parameter: ParameterId, source: usize, parameters: usize) -> usize {
    parameter + source * parameters
}

/// The (parameter, source) of an id made by [`sourced`].
pub fn parameter_and_source(id: usize, parameters: usize) -> (ParameterId, usize) {
    (id % parameters, id / parameters)
}

/// Parameter ids of one decoder layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerIds {
    pub(crate) input_norm: ParameterId,
    pub(crate) post_norm: ParameterId,
    pub(crate) attention: AttentionIds,
    /// Dense or shared feed-forward: (gate_up, down).
    pub(crate) feed_forward: Option<(ParameterId, ParameterId)>,
    pub(crate) router: Option<ParameterId>,
    /// Routed experts: (gate_up, down).
    pub(crate) experts: Vec<(ParameterId, ParameterId)>,
    pub(crate) mtp: Option<MtpIds>,
}

/// Parameter ids of an attention block; absent ones are none.
#[derive(Debug, Clone)]
pub(crate) struct AttentionIds {
    pub(crate) qkv: Option<ParameterId>,
    pub(crate) q_kv_a: Option<ParameterId>,
    pub(crate) q_a_norm: Option<ParameterId>,
    pub(crate) q_b: Option<ParameterId>,
    pub(crate) kv_a_norm: Option<ParameterId>,
    pub(crate) kv_b: Option<ParameterId>,
    pub(crate) o: ParameterId,
}

/// Parameter ids of an MTP layer's own parts.
#[derive(Debug, Clone)]
pub(crate) struct MtpIds {
    pub(crate) embedding_norm: ParameterId,
    pub(crate) hidden_norm: ParameterId,
    pub(crate) projection: ParameterId,
    pub(crate) head_norm: ParameterId,
}

impl LayerIds {
    pub(crate) fn find(inventory: &Inventory, layer: usize) -> LayerIds {
        let id = |name: &str| inventory.find(&format!("layers.{layer}.{name}")).map(|p| p.id);
        let must = |name: &str| id(name).expect("the inventory lists every part of a layer");
        let pair =
            |name: &str| Some((id(&format!("{name}.gate_up"))?, id(&format!("{name}.down"))?));
        LayerIds {
            input_norm: must("input_norm"),
            post_norm: must("post_norm"),
            attention: AttentionIds {
                qkv: id("attention.qkv"),
                q_kv_a: id("attention.q_kv_a"),
                q_a_norm: id("attention.q_a_norm"),
                q_b: id("attention.q_b"),
                kv_a_norm: id("attention.kv_a_norm"),
                kv_b: id("attention.kv_b"),
                o: must("attention.o"),
            },
            feed_forward: pair("mlp").or_else(|| pair("shared")),
            router: id("router"),
            experts: (0..).map_while(|expert| pair(&format!("experts.{expert}"))).collect(),
            mtp: id("projection").map(|projection| MtpIds {
                embedding_norm: must("embedding_norm"),
                hidden_norm: must("hidden_norm"),
                projection,
                head_norm: must("head_norm"),
            }),
        }
    }
}
