//! Small files that are read whole: regular ones, up to a size. A pipe in their place would be waited for without end, a
//! device read without end.

use crate::error::Error;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The contents of the regular file `path`, which has at most `limit` bytes.
pub(crate) fn read_regular(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let missing = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => Error::MissingFile { path: path.to_owned() },
        _ => Error::read(path)(e),
    };
    // Asked before opening: a pipe without a writer opens never.
    let metadata = std::fs::metadata(path).map_err(missing)?;
    if !metadata.is_file() {
        return Err(Error::NotRegular { path: path.to_owned() });
    }
    if metadata.len() > limit {
        return Err(Error::TooLarge { path: path.to_owned(), bytes: metadata.len(), limit });
    }
    let mut contents = Vec::new();
    let file = File::open(path).map_err(missing)?;
    file.take(limit).read_to_end(&mut contents).map_err(Error::read(path))?;
    Ok(contents)
}
