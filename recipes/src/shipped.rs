//! The recipes that lie beside this crate, by name: presets for `model.preset`.

/// Name and text of every shipped recipe.
pub const SHIPPED: &[(&str, &str)] = &[
    ("quickstart", include_str!("../quickstart.toml")),
    ("shakespeare_char", include_str!("../shakespeare_char.toml")),
    ("reference_moe", include_str!("../reference_moe.toml")),
    ("debug_llama", include_str!("../debug_llama.toml")),
    ("debug_moe", include_str!("../debug_moe.toml")),
    ("debug_moe_noqlora", include_str!("../debug_moe_noqlora.toml")),
    ("deepseek_llm_7b", include_str!("../deepseek_llm_7b.toml")),
    ("deepseek_llm_67b", include_str!("../deepseek_llm_67b.toml")),
    ("deepseek_moe_16b", include_str!("../deepseek_moe_16b.toml")),
    ("deepseek_v2_lite", include_str!("../deepseek_v2_lite.toml")),
    ("deepseek_v2", include_str!("../deepseek_v2.toml")),
    ("deepseek_v3", include_str!("../deepseek_v3.toml")),
];

/// Text of the shipped recipe `name`.
pub fn shipped(name: &str) -> Option<&'static str> {
    SHIPPED.iter().find(|(shipped, _)| *shipped == name).map(|(_, text)| *text)
}
