//! DeepSeek-V3 blocks: multi-head latent attention, gate, experts, multi-token prediction.

pub mod bias;
pub mod gate;
pub(crate) mod mla;
pub mod routing;
