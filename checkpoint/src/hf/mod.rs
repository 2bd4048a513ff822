//! Hugging Face layout in and out: `config.json` plus `model.safetensors` (or numbered files with an index), with the
//! tensor names of `transformers`.
//!
//! Two classes are known: `LlamaForCausalLM` and `DeepseekV3ForCausalLM`. Everything else is refused when the folder is
//! opened, with the key and the value that say so; nothing is guessed.

pub mod config;
mod config_out;
mod export;
mod folder;
mod golden;
mod import;
mod keys;

pub use export::{Exported, Options, StorageType, export, from_checkpoint};
pub use folder::Folder;
pub use golden::Golden;
pub use import::Import;

/// Name of the configuration file.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the file with the special tokens of generated text.
pub const GENERATION_FILE: &str = "generation_config.json";
/// Name of the only weight file.
pub const WEIGHTS_FILE: &str = "model.safetensors";
/// Name of the index of a folder with several weight files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
