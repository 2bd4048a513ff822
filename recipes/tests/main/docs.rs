//! `docs/recipes.md` lists every key: its tables are written from the declarations that parse them.

use crate::golden;
use lampyris_recipes::{Key, keys};
use std::path::Path;

/// Every section as (path, keys), the top level first.
fn sections(path: &str, keys: &'static [Key], out: &mut Vec<(String, &'static [Key])>) {
    out.push((path.to_string(), keys));
    for key in keys.iter().filter(|key| !key.keys.is_empty()) {
        let below = if path.is_empty() { key.name.into() } else { format!("{path}.{}", key.name) };
        sections(&below, key.keys, out);
    }
}

fn table(keys: &[Key]) -> String {
    let mut out = String::from("| key | type | default | meaning |\n|---|---|---|---|\n");
    for key in keys {
        let section = !key.keys.is_empty();
        let default = match key.default {
            "{}" => "see below".to_string(),
            text if text == "required" || !is_toml(text) => text.to_string(),
            text => format!("`{text}`"),
        };
        let expects = match (section, key.expects) {
            (true, "a list") => "a list of sections",
            (_, expects) => expects,
        };
        let row = [&format!("`{}`", key.name), expects, &default, key.doc.trim()];
        out += &format!("| {} |\n", row.join(" | "));
    }
    out
}

fn is_toml(text: &str) -> bool {
    toml::from_str::<toml::Table>(&format!("value = {text}")).is_ok()
}

/// Replaces what stands between `<!-- keys: PATH -->` and `<!-- end -->` by the table of that section.
#[test]
fn every_key_is_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/recipes.md");
    let mut page = std::fs::read_to_string(&path).unwrap();
    let mut all = Vec::new();
    sections("", keys(), &mut all);
    for (name, keys) in all {
        let start = format!("<!-- keys: {} -->\n", if name.is_empty() { "recipe" } else { &name });
        let from = page.find(&start).unwrap_or_else(|| panic!("docs/recipes.md lacks {start}"));
        let from = from + start.len();
        let to = from + page[from..].find("<!-- end -->").expect("every table has an end");
        page.replace_range(from..to, &table(keys));
    }
    golden::compare_file(&path, &page);
}
