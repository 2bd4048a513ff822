//! The report as a table of at most 100 columns: section, item, value with its unit, remark.

use super::{Report, StepBound};
use crate::model_spec::{Attention, ModelSpec};
use crate::traffic::Sent;
use crate::train_plan::{Compute, Device, Reduction, Source, TokenizerPlan, TrainPlan};
use std::fmt;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table { f, section: "" };
        writeln!(table.f, "{}\n", self.plan.name)?;
        self.sizes(&mut table)?;
        self.text_and_run(&mut table)?;
        self.ranks(&mut table)?;
        self.remarks(&mut table)
    }
}

impl Report {
    fn sizes(&self, table: &mut Table<'_, '_>) -> fmt::Result {
        table.section = "model";
        for line in model_lines(&self.plan.model) {
            table.line(&line)?;
        }
        let count = &self.parameters;
        table.section = "parameters";
        table.row("main model", &decimal(count.main as f64, ""), "")?;
        table.row("active per token", &decimal(count.active as f64, ""), "")?;
        table.row("embedding and head", &decimal(count.embedding_and_head as f64, ""), "")?;
        if count.mtp > 0 {
            table.row("MTP layers", &decimal(count.mtp as f64, ""), "on top of the main model")?;
        }
        let flops = &self.flops_per_token;
        table.section = "per token";
        let forward = decimal(flops.forward as f64, "FLOP");
        table.row("forward", &forward, "causal attention at half the sequence")?;
        table.row("training", &decimal(flops.training as f64, "FLOP"), "3 x forward")?;
        if count.mtp > 0 {
            let forward = decimal(flops.forward_with_mtp as f64, "FLOP");
            table.row("forward with MTP", &forward, "")?;
            let training = decimal(flops.training_with_mtp as f64, "FLOP");
            table.row("training with MTP", &training, "")?;
        }
        Ok(())
    }

    fn text_and_run(&self, table: &mut Table<'_, '_>) -> fmt::Result {
        let plan = &self.plan;
        table.section = "text";
        for source in &plan.data.sources {
            table.line(&source_line(source))?;
        }
        if plan.data.sources.is_empty() {
            table.line("no source: planned only")?;
        }
        table.line(&tokenizer_line(&plan.tokenizer))?;
        let run = &self.run;
        table.section = "run";
        table.row("tokens", &decimal(run.tokens as f64, ""), "")?;
        let warmup = format!("{} of them warm-up", grouped(run.warmup_steps));
        table.row("steps", &grouped(run.steps), &warmup)?;
        let batch = &plan.batch;
        let sequences = |count: usize| {
            format!("{} x {}", grouped(count as u64), grouped(batch.sequence_length as u64))
        };
        let shape = sequences(batch.global_batch);
        table.row("tokens per step", &grouped(run.step_tokens), &shape)?;
        if run.first_step_tokens < run.step_tokens {
            let over = decimal(batch.ramp_tokens as f64, "");
            let shape = format!("{}, growing over {over} tokens", sequences(batch.ramp_start));
            table.row("tokens of first step", &grouped(run.first_step_tokens), &shape)?;
        }
        let leaves = match batch.leaves {
            1 => "1 gradient leaf".to_string(),
            n => format!("{n} gradient leaves"),
        };
        let micro = format!("{}, {leaves}", sequences(batch.micro_batch));
        table.row("micro-batches per step", &grouped(run.micro_batches), &micro)?;
        if let Some(muon) = self.newton_schulz {
            let training = (run.step_tokens * self.flops_per_token.training_with_mtp) as f64;
            let share = |flops: u64, of: f64| format!("{:.1} %", 100.0 * flops as f64 / of);
            let all = share(muon.step_flops, training);
            let busiest = share(muon.busiest_rank_flops, muon.step_flops as f64);
            let remark = format!("{all} of training; busiest rank {busiest} of it");
            let flops = decimal(muon.step_flops as f64, "FLOP");
            table.row("Newton-Schulz per step", &flops, &remark)?;
        }
        table.row("whole run", &decimal(run.flops, "FLOP"), "")
    }

    fn ranks(&self, table: &mut Table<'_, '_>) -> fmt::Result {
        let plan = &self.plan;
        table.section = "layout";
        table.line(&layout_line(plan))?;
        let memory = &self.memory_per_rank;
        table.section = "per rank";
        table.row("master weights", &binary(memory.kinds.master_weights), "fp32")?;
        if memory.kinds.compute_weights > 0 {
            table.row("compute weights", &binary(memory.kinds.compute_weights), "bf16")?;
        }
        let (canonical, fast) = (memory.gradients_if_canonical, memory.gradients_if_fast);
        let other = match plan.batch.reduction {
            Reduction::Canonical if fast != canonical => {
                format!("canonical; {} if fast", binary(fast))
            }
            Reduction::Canonical => "canonical".to_string(),
            Reduction::Fast => format!("fast; {} if canonical", binary(canonical)),
        };
        table.row("gradients", &binary(memory.kinds.gradients), &other)?;
        let moments = match plan.optimizer.muon {
            None => "two moments, fp32",
            Some(_) => "two moments, one of Muon's matrices, fp32",
        };
        table.row("optimizer", &binary(memory.kinds.optimizer), moments)?;
        let estimate = match plan.parallel.overlap {
            true => "overlapped micro-batches; an estimate",
            false => "one micro-batch; an estimate",
        };
        table.row("activations", &binary(memory.kinds.activations), estimate)?;
        let copy = "host copy for checkpoints, fp32";
        table.row("snapshot", &binary(memory.kinds.snapshot), copy)?;
        if memory.kinds.replicas > 0 {
            let what = "own and a neighbour's, twice while replaced";
            table.row("replicas", &binary(memory.kinds.replicas), what)?;
        }
        table.row("total", &binary(memory.total), "")?;
        if plan.parallel.data > 1 {
            self.traffic(table)?;
        }
        self.step_bound(table)?;
        table.section = "checkpoint";
        table.row("of the whole job", &binary(self.checkpoint_bytes), "fp32 weights and moments")
    }

    /// Inside a node through shared memory, between nodes over the network.
    fn traffic(&self, table: &mut Table<'_, '_>) -> fmt::Result {
        let traffic = &self.traffic_per_step;
        table.section = "sent a step";
        let mut row = |item: &str, sent: Sent, remark: &str| {
            let way = match sent {
                Sent { network: 0, .. } => "in the node".to_string(),
                Sent { shared_memory: 0, .. } => "between nodes".to_string(),
                _ => format!("{} of it between nodes", binary(sent.network)),
            };
            table.row(item, &binary(sent.total()), &format!("{way}{remark}"))
        };
        row("gradients", traffic.reduce, "; by each rank")?;
        if traffic.gather.total() > 0 {
            row("updated weights", traffic.gather, "")?;
        }
        if traffic.dispatch.total() > 0 {
            row("rows to experts", traffic.dispatch, "; forward and backward")?;
            row("rows from experts", traffic.combine, "; experts equally loaded")?;
        }
        row("total", traffic.total(), "")
    }

    fn step_bound(&self, table: &mut Table<'_, '_>) -> fmt::Result {
        let Some(StepBound { speeds, bound }) = &self.step_bound else { return Ok(()) };
        table.section = "least step";
        let speed = decimal(speeds.flops_per_s, "FLOP/s");
        let products = format!("matrix products at {speed} a rank");
        table.row("computation", &seconds(bound.compute_s), &products)?;
        if bound.transfer_s > 0.0 {
            let link = decimal(8.0 * speeds.link_bytes_per_s, "bit/s");
            let link = format!("between nodes, at {link} a node");
            table.row("transfers", &seconds(bound.transfer_s), &link)?;
        }
        let hidden = match bound.transfer_s {
            0.0 => String::new(),
            _ => format!("{:.0} % of the transfers are hidden", 100.0 * bound.hidden()),
        };
        table.row("critical path", &seconds(bound.step_s), &hidden)
    }

    fn remarks(&self, table: &mut Table<'_, '_>) -> fmt::Result {
        table.section = "digests";
        let short = |digest: &str| digest[..16].to_string();
        table.line(&format!(
            "numerics {}   plan {}",
            short(&self.digests.numerics),
            short(&self.digests.plan)
        ))?;
        table.section = "notes";
        for note in self.notes.iter().chain(&self.untrainable) {
            for line in wrapped(note) {
                table.line(&line)?;
            }
        }
        Ok(())
    }
}

/// Writes rows; a section's name stands on its first row only.
struct Table<'a, 'b> {
    f: &'a mut fmt::Formatter<'b>,
    section: &'static str,
}

/// Columns of a row beside its section's name, so that rows fit 100.
const LINE_WIDTH: usize = 87;

impl Table<'_, '_> {
    fn row(&mut self, item: &str, value: &str, remark: &str) -> fmt::Result {
        self.line(&format!("{item:<23}{value:>16}  {remark}"))
    }

    fn line(&mut self, text: &str) -> fmt::Result {
        let section = std::mem::take(&mut self.section);
        writeln!(self.f, "{}", format!("{section:<13}{text}").trim_end())
    }
}

fn model_lines(model: &ModelSpec) -> Vec<String> {
    let mut lines = vec![format!(
        "{} layers, hidden {}, vocabulary {}{}",
        model.layers,
        model.hidden,
        grouped(model.vocab_size as u64),
        if model.tie_embeddings { ", head tied to the embedding" } else { "" }
    )];
    lines.push(match model.attention {
        Attention::Gqa { heads, kv_heads, head_dim } => {
            format!("GQA: {heads} heads of {head_dim}, {kv_heads} for keys and values")
        }
        Attention::Mla { heads, q_rank, kv_rank, nope_dim, rope_dim, v_dim } => {
            let q_rank = q_rank.map_or("none".to_string(), |rank| rank.to_string());
            format!(
                "MLA: {heads} heads of {nope_dim} + {rope_dim}, values {v_dim}, query rank {q_rank}, \
                 key-value rank {kv_rank}"
            )
        }
    });
    match &model.moe {
        None => lines.push(format!("dense feed-forward of {}", model.ffn_hidden)),
        Some(moe) => {
            lines.push(format!(
                "MoE: {} experts of {}, {} per token in {} of {} groups, {} shared",
                moe.experts,
                moe.expert_hidden,
                moe.experts_per_token,
                moe.groups_per_token,
                moe.groups,
                moe.shared_experts
            ));
            let (first, width) = (moe.first_dense_layers, model.ffn_hidden);
            lines.push(match first {
                0 => "no dense layer".to_string(),
                1 => format!("the first layer dense, feed-forward of {width}"),
                _ => format!("the first {first} layers dense, feed-forward of {width}"),
            });
        }
    }
    lines
}

fn source_line(source: &Source) -> String {
    let text = match source {
        Source::Text { path } => path.clone(),
        Source::Jsonl { path, field } => format!("{path}, JSON lines, field {field}"),
        Source::CargoSources { manifest } => {
            format!("Rust sources of the packages under {manifest}")
        }
    };
    shortened(&text)
}

fn tokenizer_line(tokenizer: &TokenizerPlan) -> String {
    match tokenizer {
        TokenizerPlan::Byte => "tokens are bytes".to_string(),
        TokenizerPlan::Char => "tokens are characters".to_string(),
        TokenizerPlan::Bpe { vocab_size, train_bytes } => {
            let vocabulary = grouped(*vocab_size as u64);
            let bytes = decimal(*train_bytes as f64, "B");
            format!("BPE of {vocabulary} tokens, trained on the first {bytes}")
        }
        TokenizerPlan::File { path, .. } => shortened(&format!("tokenizer {}", path.display())),
    }
}

fn layout_line(plan: &TrainPlan) -> String {
    let parallel = &plan.parallel;
    let compute = match plan.compute {
        Compute::Bf16 => "bf16",
        Compute::Fp32 => "fp32",
    };
    let device = match plan.device {
        Device::Cpu => "CPU",
        Device::Cuda => "CUDA",
    };
    let mut ranks = match parallel.data {
        1 => "1 rank".to_string(),
        n => format!("{n} data-parallel ranks"),
    };
    if parallel.expert > 1 {
        ranks += &format!(", experts over {}", parallel.expert);
    }
    if parallel.zero > 0 {
        ranks += &format!(", ZeRO-{}", parallel.zero);
    }
    format!("{ranks}; {compute} on {device}")
}

/// Cut in front, where paths are least telling.
fn shortened(text: &str) -> String {
    let length = text.chars().count();
    if length <= LINE_WIDTH {
        return text.to_string();
    }
    let tail: String = text.chars().skip(length - LINE_WIDTH + 3).collect();
    format!("...{tail}")
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("never empty");
        if !last.is_empty() && last.chars().count() + 1 + word.chars().count() > LINE_WIDTH {
            lines.push(word.to_string());
        } else {
            if !last.is_empty() {
                last.push(' ');
            }
            last.push_str(word);
        }
    }
    lines
}

/// Two decimals and a decimal prefix: `671.03 B`, `83.48 GFLOP`. Counts use the words of the field (B, T).
fn decimal(value: f64, unit: &str) -> String {
    let prefixes = if unit.is_empty() {
        ["", "K", "M", "B", "T"].as_slice()
    } else {
        ["", "k", "M", "G", "T", "P", "E", "Z", "Y"].as_slice()
    };
    scaled(value, 1000.0, prefixes, unit)
}

/// Four significant digits or so: `12.34 s`, `345.6 ms`.
fn seconds(value: f64) -> String {
    if value < 1.0 { format!("{:.1} ms", 1e3 * value) } else { format!("{value:.2} s") }
}

/// Two decimals and a binary prefix: `1.50 GiB`.
fn binary(bytes: u64) -> String {
    scaled(bytes as f64, 1024.0, &["", "Ki", "Mi", "Gi", "Ti", "Pi"], "B")
}

fn scaled(value: f64, base: f64, prefixes: &[&str], unit: &str) -> String {
    let (mut value, mut step) = (value, 0);
    // 0.005 below the next prefix already prints as that prefix's 1.
    while value >= base - 0.005 && step + 1 < prefixes.len() {
        value /= base;
        step += 1;
    }
    let digits = if step == 0 { 0 } else { 2 };
    format!("{value:.digits$} {}{unit}", prefixes[step]).trim_end().to_string()
}

/// Thousands separated: `1,004,032`.
fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_carry_their_prefix() {
        assert_eq!(decimal(0.0, ""), "0");
        assert_eq!(decimal(999.0, ""), "999");
        assert_eq!(decimal(1_000.0, ""), "1.00 K");
        assert_eq!(decimal(999_999.0, "B"), "1.00 MB"); // not 1000.00 kB
        assert_eq!(decimal(671.026e9, ""), "671.03 B");
        assert_eq!(decimal(3.9e24, "FLOP"), "3.90 YFLOP");
        assert_eq!(decimal(5e27, "FLOP"), "5000.00 YFLOP");
        assert_eq!(binary(1_023), "1023 B");
        assert_eq!(binary(1_536), "1.50 KiB");
    }

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(62_914_560), "62,914,560");
    }

    #[test]
    fn long_text_is_cut_in_front_or_wrapped() {
        let path = format!("/{}/input.txt", "x".repeat(200));
        let short = shortened(&path);
        assert_eq!(short.chars().count(), LINE_WIDTH);
        assert!(short.starts_with("...") && short.ends_with("/input.txt"));
        let lines = wrapped(&"word ".repeat(40));
        assert!(lines.len() == 3 && lines.iter().all(|line| line.len() <= LINE_WIDTH));
        assert_eq!(lines.join(" "), "word ".repeat(40));
    }
}
