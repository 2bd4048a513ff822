//! A checkpoint of every released format is kept and must load. `UPDATE_GOLDEN=1 cargo test -p lampyris-checkpoint golden`
//! writes the one of the current format anew; a change of its bytes needs a new format number.

use super::fixture::{self, Layout, id, new_run, save};
use lampyris_checkpoint::Reader;
use lampyris_checkpoint::disk::RealDisk;
use std::path::{Path, PathBuf};
use std::sync::Arc;

fn golden(format: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/format-{format}"))
}

const FILES: [&str; 5] = [
    "rank-00000.data",
    "rank-00000.index.json",
    "rank-00001.data",
    "rank-00001.index.json",
    "manifest.json",
];

#[test]
fn a_checkpoint_of_every_format_loads() {
    for format in 1..=lampyris_checkpoint::format::FORMAT {
        let reader = Reader::open(Arc::new(RealDisk), &golden(format)).unwrap();
        assert_eq!(reader.manifest().format, format);
        fixture::check(&reader, 2).unwrap();
        assert_eq!(reader.manifest().digests, fixture::meta(id(3, 1)).digests);
    }
}

#[test]
fn the_current_format_is_written_byte_for_byte() {
    let (_dir, run) = new_run();
    let fresh = save(&run, id(3, 1), &Layout::random(42, 2)).unwrap();
    let golden = golden(lampyris_checkpoint::format::FORMAT);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(&golden).unwrap();
        for file in FILES {
            std::fs::copy(fresh.join(file), golden.join(file)).unwrap();
        }
    }
    // The manifest holds the time.
    for file in &FILES[..4] {
        let (written, kept) = (std::fs::read(fresh.join(file)), std::fs::read(golden.join(file)));
        assert!(written.unwrap() == kept.unwrap(), "{file} has changed");
    }
}
