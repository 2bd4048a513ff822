//! The data ledger of a step as lines.

use crate::ledger::{Document, Ledger, Sample};
use lampyris_plan::visible;

/// One line per sequence, one per document in it, and the text if it is there.
pub(crate) fn ledger(ledger: &Ledger) -> String {
    let Ledger { step, attempt, dataset, sequence_length, samples } = ledger;
    let mut lines = vec![format!(
        "step {step}, attempt {attempt}: {} sequences of {sequence_length} tokens, text {dataset}",
        samples.len()
    )];
    for sample in samples {
        let Sample { position, micro_batch, epoch, window, documents } = sample;
        lines.push(format!(
            "sample {position}: micro-batch {micro_batch}, epoch {epoch}, window {window}"
        ));
        documents.iter().for_each(|document| lines.extend(document_lines(document)));
    }
    lines.join("\n")
}

fn document_lines(document: &Document) -> Vec<String> {
    let Document { document, source, file, line, tokens: [start, end], text } = document;
    let line = line.map_or_else(String::new, |line| format!(":{line}"));
    let mut lines = vec![format!(
        "  document {document}, source {source}, {}{line}: tokens {start}..{end}",
        visible::line(file)
    )];
    let text = text.iter().flat_map(|text| text.lines());
    lines.extend(text.map(|line| format!("    | {}", visible::prose(line))));
    lines
}
