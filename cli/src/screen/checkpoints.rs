//! Checkpoints as tables and lines.

use indicatif::{BinaryBytes, HumanCount};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use lampyris_checkpoint::report::{Diff, List, Listed, Shown, TensorDiff, Verified};
use lampyris_checkpoint::{Pruned, Repaired};
use lampyris_plan::visible;
use std::borrow::Cow;
use std::path::Path;

/// Tensors that a difference lists; the rest is counted.
const MAX_TENSORS: usize = 20;

/// One line per checkpoint.
pub(crate) fn list(list: &List) -> String {
    if list.checkpoints.is_empty() && list.quarantined.is_empty() {
        return list.problem.clone().unwrap_or_else(|| "no checkpoints".into());
    }
    let mut lines = vec!["    step  attempt  saved                      size   loss".to_string()];
    lines.extend(list.checkpoints.iter().map(line));
    let aside =
        |name: &String| format!("{}  set aside, see its quarantine.json", visible::line(name));
    lines.extend(list.quarantined.iter().map(aside));
    lines.extend(list.problem.iter().map(|problem| visible::line(problem).into_owned()));
    lines.join("\n")
}

fn line(listed: &Listed) -> String {
    let saved = listed.saved_unix_s.map_or_else(String::new, local_time);
    let bytes = listed.bytes.map_or_else(String::new, |bytes| BinaryBytes(bytes).to_string());
    let loss = listed.validation_loss.map_or_else(|| "-".into(), |loss| format!("{loss:.4}"));
    let remark = match (&listed.problem, listed.in_lineage) {
        (Some(problem), _) => format!("damaged: {problem}"),
        (None, false) => "not in the lineage: not loaded".into(),
        (None, true) => String::new(),
    };
    let (step, attempt) = (listed.id.step.0, listed.id.attempt.0);
    let line = format!("{step:>8}  {attempt:>7}  {saved:<19}  {bytes:>10}  {loss:<6}  {remark}");
    visible::line(line.trim_end()).into_owned()
}

/// What one checkpoint holds, its tensors counted.
pub(crate) fn shown(path: &Path, shown: &Shown) -> String {
    let manifest = &shown.manifest;
    let parent = manifest.parent.map_or_else(|| "a fresh start".into(), |id| id.to_string());
    let mut lines = vec![
        shown_path(path).into_owned(),
        row("step", manifest.id.step),
        row("attempt", manifest.id.attempt),
        row("continues", parent),
        row("saved", local_time(manifest.saved_unix_s)),
        row("format", manifest.format),
        row("ranks", manifest.world),
        row("size", BinaryBytes(shown.data_bytes)),
        row("numerics", &manifest.digests.numerics),
        row("plan", &manifest.digests.plan),
    ];
    if let Some(loss) = manifest.validation_loss {
        lines.push(row("validation", format_args!("{loss:.6} nats per token")));
    }
    let counts = &shown.elements;
    lines.extend(counts.iter().map(|(kind, count)| row(&kind.to_string(), HumanCount(*count))));
    let fingerprint = manifest.fingerprint.iter();
    lines.extend(fingerprint.map(|(key, value)| row(key, value)));
    lines.extend(manifest.state.iter().map(|(key, value)| row(key, value)));
    lines.join("\n")
}

fn row(name: &str, value: impl std::fmt::Display) -> String {
    let (name, value) = (visible::line(name), value.to_string());
    format!("  {name:<18}{}", visible::line(&value))
}

fn shown_path(path: &Path) -> Cow<'_, str> {
    match path.to_string_lossy() {
        Cow::Borrowed(text) => visible::line(text),
        Cow::Owned(text) => Cow::Owned(visible::line(&text).into_owned()),
    }
}

/// One line per checkpoint, one more per problem.
pub(crate) fn verified(verified: &[Verified]) -> String {
    if verified.is_empty() {
        return "no checkpoints".into();
    }
    let one = |one: &Verified| match one.problems.as_slice() {
        [] => format!("{}: {} read, all well", shown_path(&one.path), BinaryBytes(one.bytes)),
        problems => {
            let line = |text: &String| format!("\n  {}", visible::line(text));
            let problems: String = problems.iter().map(line).collect();
            format!("{}: damaged{problems}", shown_path(&one.path))
        }
    };
    verified.iter().map(one).collect::<Vec<_>>().join("\n")
}

/// Whether both hold the same tensors with the same bits.
pub(crate) fn are_equal(diff: &Diff) -> bool {
    diff.tensors.is_empty()
        && diff.only_a.is_empty()
        && diff.only_b.is_empty()
        && diff.reshaped.is_empty()
}

/// What differs, worst first.
pub(crate) fn diff(diff: &Diff) -> String {
    let mut lines: Vec<String> = diff.tensors.iter().take(MAX_TENSORS).map(tensor_line).collect();
    if diff.tensors.len() > MAX_TENSORS {
        lines.push(format!("... and {} more", diff.tensors.len() - MAX_TENSORS));
    }
    let named = |what: &str, names: &[String]| {
        names.iter().map(|name| format!("{}: {what}", visible::line(name))).collect::<Vec<_>>()
    };
    lines.extend(named("only in the first", &diff.only_a));
    lines.extend(named("only in the second", &diff.only_b));
    lines.extend(named("another shape", &diff.reshaped));
    lines.extend(diff.fields.iter().map(|field| format!("{} differs", visible::line(field))));
    let differing = diff.tensors.len();
    lines.push(format!("{differing} tensors differ, {} are equal to the last bit", diff.equal));
    lines.join("\n")
}

fn tensor_line(tensor: &TensorDiff) -> String {
    let TensorDiff { differing, elements, max_difference, max_b, .. } = tensor;
    let ratio = tensor.ratio();
    format!(
        "{} {}: {differing} of {elements} elements, max|a-b| {max_difference:.3e}, max|b| \
         {max_b:.3e}, ratio {ratio:.3e}",
        visible::line(&tensor.tensor),
        tensor.kind
    )
}

/// What went, or would go.
pub(crate) fn pruned(pruned: &Pruned, dry_run: bool) -> String {
    let verb = if dry_run { "would remove" } else { "removed" };
    let removed = pruned.removed.iter().map(|id| format!("{verb} {id}"));
    let swept = pruned.swept.iter().map(|name| format!("{verb} leftover {}", visible::line(name)));
    let kept = pruned.kept.iter().map(|id| format!("kept {id}"));
    let lines: Vec<String> = removed.chain(swept).chain(kept).collect();
    if lines.is_empty() { "no checkpoints".into() } else { lines.join("\n") }
}

/// What a repair did, or would do.
pub(crate) fn repaired(run: &Path, repaired: &Repaired, dry_run: bool) -> String {
    let would = if dry_run { "would be " } else { "" };
    let mut lines = Vec::new();
    match &repaired.adopted {
        Some(id) if repaired.changed => lines.push(format!("{id} {would}adopted")),
        Some(id) => lines.push(format!("nothing to mend: the run goes on from {id}")),
        None => lines.push("the run has not saved any checkpoint yet".into()),
    }
    for aside in &repaired.set_aside {
        lines.push(format!("{} {would}set aside: {}", aside.id, visible::line(&aside.problem)));
    }
    if !repaired.changed {
        return lines.join("\n");
    }
    for record in &repaired.records {
        let from = record.parent.map_or_else(|| "nothing".into(), |id| id.to_string());
        lines.push(format!("recorded: attempt {} began from {from}", record.attempt));
    }
    lines
        .extend(repaired.old_file.iter().map(|old| format!("the old file is {}", shown_path(old))));
    if !dry_run {
        lines.push(format!("`lampyris resume {}` goes on", visible::line(&super::word(run))));
    }
    lines.join("\n")
}

fn local_time(unix_s: u64) -> String {
    let at = i64::try_from(unix_s).ok().and_then(|s| Timestamp::from_second(s).ok());
    at.map_or_else(
        || unix_s.to_string(),
        |at| at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}
