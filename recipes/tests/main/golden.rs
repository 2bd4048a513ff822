//! Compares text with a file in `testdata`; `UPDATE_GOLDEN=1` rewrites the file instead.

use std::path::Path;

/// Panics with both texts if `text` is not what `testdata/NAME` holds.
pub(crate) fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name);
    compare_file(&path, text);
}

pub(crate) fn compare_file(path: &Path, text: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("a file has a folder"))
            .expect("testdata is writable");
        std::fs::write(path, text).expect("testdata is writable");
        return;
    }
    let expected = std::fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{}: {error}; run with UPDATE_GOLDEN=1", path.display()));
    assert!(
        expected == text,
        "{} differs; if the new text is right, run with UPDATE_GOLDEN=1\n--- expected\n{expected}\n--- found\n{text}",
        path.display()
    );
}
