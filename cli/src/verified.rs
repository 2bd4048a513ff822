//! Prepared text that a node of a cluster is about to read, compared with its checksums: all of it before the first start on
//! a machine, later only names, lengths, times and inodes, as long as nothing about a file has changed.

use lampyris_data::{Dataset, Error, Silent};
use lampyris_worker::private;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What changes about a file when somebody writes it or puts another in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    bytes: u64,
    inode: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    /// Of the inode: unlike `modified`, nobody can set it back.
    changed: (i64, i64),
}

/// Which folder was compared, and how its files looked then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    folder: PathBuf,
    files: BTreeMap<String, Mark>,
}

impl Record {
    fn of(dataset: &Dataset) -> io::Result<Record> {
        let mut files = BTreeMap::new();
        for name in dataset.file_names() {
            let found = fs::metadata(dataset.folder().join(name))?;
            let mark = Mark {
                bytes: found.len(),
                inode: found.ino(),
                modified: (found.mtime(), found.mtime_nsec()),
                changed: (found.ctime(), found.ctime_nsec()),
            };
            files.insert(name.to_string(), mark);
        }
        Ok(Record { folder: dataset.folder().to_path_buf(), files })
    }
}

/// Compares a folder of prepared text with its checksums, unless `cache_dir` says that this was done since its files last
/// changed. Gives its fingerprint.
///
/// # Errors
/// The text is damaged or cannot be read.
pub(crate) fn verify(folder: &Path, cache_dir: &Path) -> Result<String, Error> {
    let dataset = Dataset::open(folder)?;
    let fingerprint = dataset.fingerprint().to_string();
    let path = cache_dir.join("verified").join(format!("{fingerprint}.json"));
    let before = Record::of(&dataset).ok();
    if before.is_some() && before == read(&path) {
        return Ok(fingerprint);
    }
    dataset.verify(&Silent)?;
    // What changed meanwhile was not compared. Without a record all is compared again next time.
    if let Some(record) =
        before.filter(|before| Record::of(&dataset).is_ok_and(|now| now == *before))
        && let Err(error) = write(&path, &record)
    {
        tracing::warn!(%error, path = %path.display(), "cannot note that the text is whole");
    }
    Ok(fingerprint)
}

fn read(path: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn write(path: &Path, record: &Record) -> io::Result<()> {
    // Whoever can write a record decides that damaged text is whole.
    path.parent().map_or(Ok(()), private::make_folder)?;
    let temporary = path.with_extension(format!("json.{}.tmp", std::process::id()));
    fs::write(&temporary, serde_json::to_vec(record)?)?;
    fs::rename(temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lampyris_data::{Options, Source, Split, TokenizerSpec, prepare};

    fn prepared(dir: &Path) -> Dataset {
        let text = "To be, or not to be, that is the question. ".repeat(50);
        fs::write(dir.join("text.txt"), text).unwrap();
        let options = Options {
            sources: vec![Source::Text { path: dir.join("text.txt").display().to_string() }],
            max_bytes: None,
            validation: Split::Tail { fraction: 0.1 },
            tokenizer: TokenizerSpec::Byte,
            cache_dir: dir.join("data"),
        };
        prepare(&options, &Silent).unwrap()
    }

    #[test]
    fn whole_text_is_read_once_and_changed_text_again() {
        let dir = tempfile::tempdir().unwrap();
        let dataset = prepared(dir.path());
        let (folder, cache) = (dataset.folder(), dir.path().join("cache"));
        assert_eq!(verify(folder, &cache).unwrap(), dataset.fingerprint());
        let record = fs::read_dir(cache.join("verified")).unwrap().next().unwrap().unwrap().path();
        assert_eq!(fs::metadata(cache.join("verified")).unwrap().mode() & 0o777, 0o700);
        let noted = fs::read(&record).unwrap();
        assert!(verify(folder, &cache).is_ok());
        let shard = folder.join("training-00000.tokens");
        let whole = fs::read(&shard).unwrap();
        // Of the same length, with its old time.
        let time = fs::metadata(&shard).unwrap().modified().unwrap();
        fs::write(&shard, vec![0; whole.len()]).unwrap();
        fs::File::options().write(true).open(&shard).unwrap().set_modified(time).unwrap();
        for _ in 0..2 {
            let error = verify(folder, &cache).unwrap_err();
            assert!(error.to_string().contains("the checksum differs"), "{error}");
        }
        fs::write(&shard, whole).unwrap();
        assert!(verify(folder, &cache).is_ok());
        assert_ne!(fs::read(&record).unwrap(), noted);
        // A record that cannot be read is none.
        fs::write(&record, "{").unwrap();
        assert!(verify(folder, &cache).is_ok());
    }
}
