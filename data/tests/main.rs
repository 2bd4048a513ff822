//! The crate as its callers see it: sources in, batches out.
#![allow(clippy::unwrap_used, reason = "a test panics")]

mod batches;
mod peers;
mod refusals;

use lampyris_data::{Dataset, Options, Silent, Source, Split, TokenizerSpec, prepare};
use std::path::Path;

/// Options over all `*.txt` below `folder`, with the cache there too.
fn options(folder: &Path, tokenizer: TokenizerSpec, validation: Split) -> Options {
    Options {
        sources: vec![Source::Text { path: format!("{}/*.txt", folder.display()) }],
        max_bytes: None,
        validation,
        tokenizer,
        cache_dir: folder.join("cache"),
    }
}

/// Writes `documents` as files in order and prepares them.
fn prepared(
    folder: &Path,
    documents: &[&str],
    tokenizer: TokenizerSpec,
    validation: Split,
) -> Dataset {
    for (i, document) in documents.iter().enumerate() {
        std::fs::write(folder.join(format!("{i:04}.txt")), document).unwrap();
    }
    prepare(&options(folder, tokenizer, validation), &Silent).unwrap()
}
