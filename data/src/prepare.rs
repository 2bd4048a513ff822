//! Sources to a folder of token shards, or to the folder that an earlier preparation made of the same text.

use crate::cache::Cache;
use crate::dataset::{Dataset, FILES_FILE, FileName, VALIDATION_ENDS_FILE, VALIDATION_TEXT_FILE};
use crate::error::Error;
use crate::manifest::{FORMAT, FileSum, Manifest, PartSummary};
use crate::options::{Options, TokenizerSpec};
use crate::progress::{Notice, Phase, Progress};
use crate::sample::Sampler;
use crate::scan::{CorpusDigest, Scan, scan};
use crate::shard::{Layout, PartWriter, SummedFile};
use crate::source::{self, Corpus, Document, LeftOut, Listing, SourceFile, Visited};
use crate::tokenizer::{Tokenizer, train_bpe};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;

/// Prepares the text of `options` and opens the result. The second call with unchanged sources reads none of them: it
/// compares their stamps, and the checksums of the folder. A damaged folder is made again. Any number of processes may
/// prepare the same data at the same time: one works, the others wait. `progress` is called from this thread.
pub fn prepare(options: &Options, progress: &dyn Progress) -> Result<Dataset, Error> {
    prepare_at(options, progress, SystemTime::now())
}

/// `now` decides which files changed too recently for their stamps to be trusted.
pub(crate) fn prepare_at(
    options: &Options,
    progress: &dyn Progress,
    now: SystemTime,
) -> Result<Dataset, Error> {
    options.validation.check()?;
    let Listing { files, left_out } = source::list(&options.sources)?;
    if left_out != LeftOut::default() {
        progress.notice(Notice::LeftOut(left_out));
    }
    let cache = Cache::new(options, &files, now)?;
    cache.remove_leftovers();
    if let Some(fingerprint) = cache.remembered() {
        match open_verified(&cache.folder(&fingerprint), progress) {
            Err(Error::Corrupt { .. }) => {} // found again below, under the lock
            opened => return opened,
        }
    }
    let scan = scan(&files, options, progress)?;
    let fingerprint = fingerprint(options, &scan)?;
    let folder = cache.folder(&fingerprint);
    let _lock = cache.lock(&fingerprint, || progress.notice(Notice::Waiting))?;
    let existing = folder.exists().then(|| open_verified(&folder, progress));
    let dataset = match existing {
        Some(Ok(dataset)) => dataset,
        Some(Err(Error::Corrupt { path, what })) => {
            progress.notice(Notice::CorruptCache { path, what });
            cache.discard(&fingerprint)?;
            make(&cache, options, &files, scan, &fingerprint, progress)?
        }
        Some(Err(e)) => return Err(e),
        None => make(&cache, options, &files, scan, &fingerprint, progress)?,
    };
    cache.remember(&fingerprint)?;
    Ok(dataset)
}

fn open_verified(folder: &Path, progress: &dyn Progress) -> Result<Dataset, Error> {
    let dataset = Dataset::open(folder)?;
    dataset.verify(progress)?;
    Ok(dataset)
}

/// The name of the folder: everything that decides which token stands where, and nothing of this machine.
fn fingerprint(options: &Options, scan: &Scan) -> Result<String, Error> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(format!("lampyris data {FORMAT}\n").as_bytes());
    hasher.update(scan.digest.as_bytes());
    hasher.update(&serde_json::to_vec(&options.validation).expect("numbers become JSON"));
    match &options.tokenizer {
        TokenizerSpec::File { path, end_of_document } => {
            let json = std::fs::read(path).map_err(Error::read(path))?;
            hasher.update(blake3::hash(&json).as_bytes());
            hasher.update(end_of_document.as_bytes());
        }
        other => {
            hasher.update(&serde_json::to_vec(other).expect("numbers become JSON"));
        }
    }
    Ok(hasher.finalize().to_hex()[..32].to_owned())
}

/// Makes the folder beside its place, and moves it there whole.
fn make(
    cache: &Cache<'_>,
    options: &Options,
    files: &[SourceFile],
    scan: Scan,
    fingerprint: &str,
    progress: &dyn Progress,
) -> Result<Dataset, Error> {
    let mut making = None;
    progress.making(&mut || {
        let made = making.insert(cache.make(fingerprint));
        made.as_ref().ok().map(|folder| folder.path().to_path_buf())
    });
    let making = making.unwrap_or_else(|| cache.make(fingerprint))?;
    let corpus = Corpus { files, limit: scan.limit };
    let tokenizer = tokenizer(options, &corpus, &scan, progress)?;
    let manifest = Manifest {
        format: FORMAT,
        fingerprint: fingerprint.to_owned(),
        options: options.clone(),
        vocabulary_size: tokenizer.vocabulary_size(),
        end_of_document: tokenizer.end_of_document(),
        token_bytes: 0,
        shard_tokens: 0,
        training: PartSummary::default(),
        validation: PartSummary::default(),
        skipped: scan.skipped,
        files: BTreeMap::new(),
        checksum: String::new(),
    };
    let layout = Layout::of(tokenizer.vocabulary_size());
    write_folder(making.path(), &corpus, (&tokenizer, layout), &scan, manifest, progress)?;
    cache.publish(making, fingerprint)?;
    Dataset::open(&cache.folder(fingerprint))
}

fn tokenizer(
    options: &Options,
    corpus: &Corpus<'_>,
    scan: &Scan,
    progress: &dyn Progress,
) -> Result<Tokenizer, Error> {
    match &options.tokenizer {
        TokenizerSpec::Byte => Ok(Tokenizer::byte()),
        TokenizerSpec::Char => {
            let characters = scan.characters.as_ref().expect("scanned for a character tokenizer");
            Ok(Tokenizer::char(characters.iter()))
        }
        TokenizerSpec::File { path, end_of_document } => {
            Tokenizer::from_file(path, end_of_document)
        }
        TokenizerSpec::Bpe { vocab_size, train_bytes } => {
            let total = scan.training_bytes;
            progress.update(Phase::TrainTokenizer, 0, total);
            let mut sampler = Sampler::new(*train_bytes, total);
            corpus.visit(
                |document| {
                    let hash = blake3::hash(document.text.as_bytes());
                    Ok(options.validation.cut(&hash, &document.text).0.to_owned())
                },
                |visited, _| {
                    if let Visited::Text(text) = visited {
                        sampler.pass(&text);
                        // The last step of this phase is the training itself.
                        progress.update(
                            Phase::TrainTokenizer,
                            sampler.passed().min(total - 1),
                            total,
                        );
                    }
                    Ok(true)
                },
            )?;
            let tokenizer = train_bpe(&sampler.finish(), *vocab_size)?;
            progress.update(Phase::TrainTokenizer, total, total);
            Ok(tokenizer)
        }
    }
}

/// A document as tokens: each part is empty or ends with end of document.
struct Tokenized {
    file: usize,
    line: u64,
    hash: blake3::Hash,
    training: Vec<u32>,
    training_bytes: u64,
    validation: Vec<u32>,
    validation_text: String,
    /// End of each validation token in the document's validation text.
    validation_ends: Vec<u64>,
}

fn tokenize(
    document: Document,
    tokenizer: &Tokenizer,
    validation: crate::Split,
) -> Result<Tokenized, Error> {
    let hash = blake3::hash(document.text.as_bytes());
    let (training, validation) = validation.cut(&hash, &document.text);
    let mut training_tokens = tokenizer.encode(training)?;
    if !training.is_empty() {
        training_tokens.push(tokenizer.end_of_document());
    }
    let mut validation_tokens = tokenizer.encode(validation)?;
    let mut validation_ends = tokenizer.ends(validation, &validation_tokens)?;
    if !validation.is_empty() {
        validation_tokens.push(tokenizer.end_of_document());
        validation_ends.push(validation.len() as u64);
    }
    Ok(Tokenized {
        file: document.file,
        line: document.line,
        hash,
        training_bytes: training.len() as u64,
        training: training_tokens,
        validation: validation_tokens,
        validation_text: validation.to_owned(),
        validation_ends,
    })
}

/// Writes all files of a prepared folder, the manifest last.
pub(crate) fn write_folder(
    folder: &Path,
    corpus: &Corpus<'_>,
    (tokenizer, layout): (&Tokenizer, Layout),
    scan: &Scan,
    mut manifest: Manifest,
    progress: &dyn Progress,
) -> Result<(), Error> {
    let mut digest = CorpusDigest::default();
    let mut training = PartWriter::create(folder, "training", layout)?;
    let mut validation = PartWriter::create(folder, "validation", layout)?;
    let mut text = SummedFile::create(folder.join(VALIDATION_TEXT_FILE))?;
    let mut ends = SummedFile::create(folder.join(VALIDATION_ENDS_FILE))?;
    let (mut done, mut validation_bytes) = (0, 0);
    let split = manifest.options.validation;
    corpus.visit(
        |document| tokenize(document, tokenizer, split),
        |visited, _| {
            let Visited::Text(document) = visited else { return Ok(true) };
            let (file, line) = (document.file as u64, document.line);
            digest.add(&corpus.files[document.file], line, &document.hash);
            let held_out = document.validation_text.len() as u64;
            if !document.training.is_empty() {
                training.push(&document.training, document.training_bytes, file, line)?;
            }
            if !document.validation.is_empty() {
                validation.push(&document.validation, held_out, file, line)?;
                text.write(document.validation_text.as_bytes())?;
                let global: Vec<u64> =
                    document.validation_ends.iter().map(|end| validation_bytes + end).collect();
                ends.write(bytemuck::cast_slice(&global))?;
            }
            validation_bytes += held_out;
            done += document.training_bytes + held_out;
            progress.update(Phase::Tokenize, done.min(scan.bytes), scan.bytes);
            Ok(true)
        },
    )?;
    if digest.finish() != scan.digest {
        return Err(Error::Changed);
    }
    let (training, training_sums) = training.finish()?;
    let (validation, validation_sums) = validation.finish()?;
    manifest.files.extend(training_sums);
    manifest.files.extend(validation_sums);
    manifest.files.extend([text.finish()?, ends.finish()?]);
    manifest.files.extend(write_small_files(folder, corpus.files, tokenizer)?);
    (manifest.training, manifest.validation) = (training, validation);
    (manifest.token_bytes, manifest.shard_tokens) = (layout.token_bytes, layout.shard_tokens);
    manifest.save(folder)
}

/// The tokenizer, and the names of the source files.
fn write_small_files(
    folder: &Path,
    files: &[SourceFile],
    tokenizer: &Tokenizer,
) -> Result<Vec<(String, FileSum)>, Error> {
    let names: Vec<FileName> =
        files.iter().map(|f| FileName { source: f.source, name: f.name.clone() }).collect();
    let path = folder.join(FILES_FILE);
    let json = serde_json::to_vec(&names).expect("strings become JSON");
    std::fs::write(&path, json).map_err(Error::write(&path))?;
    tokenizer.save(folder)?;
    let mut sums = Vec::new();
    for &name in [FILES_FILE].iter().chain(tokenizer.files()) {
        let path = folder.join(name);
        let contents = std::fs::read(&path).map_err(Error::read(&path))?;
        sums.push((name.to_owned(), FileSum::of(&contents)));
    }
    Ok(sums)
}

#[cfg(test)]
mod tests;
