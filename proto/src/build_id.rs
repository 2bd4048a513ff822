//! One short name for "these two programs understand each other": it changes with the messages, with the schema of
//! `plan.toml` and with the release.

/// Descriptor of every message, comments removed.
const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// Build id of a program: 16 hexadecimal digits over the message descriptor, `plan_schema` (`lampyris_plan`'s
/// `train_plan::SCHEMA`, given because this crate depends on nothing) and the crate version. `lampyris` and
/// `lampyris-rank` refuse to work together unless theirs are equal.
pub fn build_id(plan_schema: u32) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(DESCRIPTOR);
    hasher.update(&plan_schema.to_le_bytes());
    hasher.update(env!("CARGO_PKG_VERSION").as_bytes());
    hasher.finalize().to_hex()[..16].to_string()
}

#[cfg(test)]
mod tests {
    use super::build_id;

    #[test]
    fn depends_on_the_plan_schema_and_on_nothing_that_varies() {
        assert_eq!(build_id(1), build_id(1));
        assert_ne!(build_id(1), build_id(2));
        assert!(build_id(1).len() == 16 && build_id(1).bytes().all(|c| c.is_ascii_hexdigit()));
    }
}
