//! `train`: the step loop of a rank. Reads top to bottom: set up, meet, load, then per step batch, agree (suspend?
//! deadline? save?), program, report, evaluate, save; at the end the final evaluation, a checkpoint, a sample.

use crate::batches::Batches;
use crate::build::Rank;
use crate::eval;
use crate::executor::{StepInput, StepReport};
use crate::forecast::Measured;
use crate::link::Link;
use crate::metrics::Began;
use crate::ranks::{Place, Ranks};
use crate::saves::Saves;
use crate::step_metrics::StepMetrics;
use crate::trace::{Awaited, Clock, TraceFile, Track};
use crate::{load, machine, sampling};
use anyhow::{Context, Result, bail, ensure};
use lampyris_checkpoint::disk::{RealDisk, regular};
use lampyris_checkpoint::{Run, Start};
use lampyris_comm::Secret;
use lampyris_data::{Batch, Dataset};
use lampyris_plan::program::Program;
use lampyris_plan::{Attempt, TrainPlan, lr};
use lampyris_proto::rank::{self, from_rank::Body, note::Severity};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tch::Device;

/// What the shim starts a rank with.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// plan.toml of the run.
    #[arg(long)]
    pub plan: PathBuf,
    /// Prepared data.
    #[arg(long)]
    pub dataset: PathBuf,
    /// Run directory.
    #[arg(long)]
    pub run_dir: PathBuf,
    /// This rank.
    #[arg(long)]
    pub rank: u64,
    /// Ranks of the run.
    #[arg(long)]
    pub world: u64,
    /// Attempt of the run.
    #[arg(long)]
    pub attempt: u64,
    /// Socket to the shim: always standard input.
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..=0))]
    pub socket_fd: i32,
    /// Nodes of the run; ranks fill them in order, equally many on each.
    #[arg(long, default_value_t = 1)]
    pub nodes: usize,
    /// This rank's node.
    #[arg(long, default_value_t = 0)]
    pub node: usize,
    /// Where the ranks meet; needed when there are several.
    #[arg(long, requires = "secret_fd")]
    pub rendezvous: Option<SocketAddr>,
    /// Descriptor from which the attempt's 32 secret bytes are read.
    #[arg(long)]
    pub secret_fd: Option<i32>,
    /// Write what this rank does, and what it waits for, to traces/ in the run directory.
    #[arg(long)]
    pub trace: bool,
}

/// How a rank ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All steps are done.
    Finished,
    /// Stopped after a complete commit.
    Suspended {
        /// Exit 86 instead of 85.
        stay_stopped: bool,
    },
    /// The deadline passed at a step boundary.
    Deadline,
}

/// Largest plan: one has a few kilobytes.
const MAX_PLAN_BYTES: u64 = 16 << 20;

/// Reads the plan that the command line wrote.
pub fn read_plan(path: &std::path::Path) -> Result<TrainPlan> {
    let text = regular::read_text(path, MAX_PLAN_BYTES)
        .with_context(|| format!("reading {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("{} is not a plan", path.display()))
}

/// Runs the rank to its end.
pub fn run(options: &Options, plan: &TrainPlan, link: &mut Link) -> Result<End> {
    #[cfg(debug_assertions)]
    lampyris_checkpoint::disk::fail_point::arm_from_environment(options.rank)
        .map_err(anyhow::Error::msg)?;
    let world = usize::try_from(options.world)?;
    ensure!(
        world == plan.parallel.data,
        "the plan has {} ranks, but {world} were started",
        plan.parallel.data
    );
    let per_node = world / options.nodes.max(1);
    let device = machine::set_up(plan, usize::try_from(options.rank)? % per_node, per_node)?;
    link.send(Body::Ready(rank::Ready {
        rank: options.rank,
        attempt: options.attempt,
        pid: std::process::id(),
        build_id: crate::build_id(),
        threads: u32::try_from(tch::get_num_threads())?,
        device: machine::device_name(device),
    }));
    if let Some(text) = machine::crowded(plan) {
        link.send(Body::Note(rank::Note { severity: Severity::Warning.into(), text }));
    }
    let dataset = Dataset::open(&options.dataset)?;
    dataset.check_vocabulary(plan.model.vocab_size)?;
    let run = Run::open(Arc::new(RealDisk), &options.run_dir)?;
    let ranks = meet(options, plan, link)?;
    let mut trainer = Trainer::load(options, plan, &dataset, (run, ranks), device, link)?;
    let ended = trainer.steps().and_then(|end| trainer.finish(end));
    if let Err(error) = &ended {
        // Those who wait for this rank hear why at once.
        trainer.rank.ranks.abort(&format!("{error:#}"));
    }
    ended
}

/// Meets the other ranks, where there are any.
fn meet(options: &Options, plan: &TrainPlan, link: &mut Link) -> Result<Ranks> {
    if options.world == 1 {
        return Ok(Ranks::alone());
    }
    let (Some(rendezvous), Some(fd)) = (options.rendezvous, options.secret_fd) else {
        bail!("{} ranks need --rendezvous and --secret-fd", options.world);
    };
    let what = "meeting the other ranks".to_string();
    link.send(Body::Operation(rank::Operation { what, done: 0, total: 0 }));
    // Opening the descriptor's own path needs no claim that nobody else holds it.
    let secret = std::fs::File::open(format!("/proc/self/fd/{fd}"))
        .with_context(|| format!("reading the secret from descriptor {fd}"))?;
    let place = Place {
        rank: usize::try_from(options.rank)?,
        nodes: options.nodes,
        node: options.node,
        attempt: u32::try_from(options.attempt)?,
        rendezvous,
        secret: Secret::from_fd(secret.into())?,
    };
    Ok(Ranks::connect(plan, place)?)
}

/// What the ranks agree on at a step boundary.
struct Agreed {
    /// Some(stay stopped) if any rank was asked to suspend.
    suspend: Option<bool>,
    /// Whether the deadline has passed for any rank.
    deadline: bool,
    /// Whether a save by time is due after this step.
    save: bool,
    /// Whether a save is in flight on any rank.
    saving: bool,
    /// Valid next-token targets of the global batch.
    valid: usize,
}

struct Trainer<'a> {
    plan: &'a TrainPlan,
    dataset: &'a Dataset,
    link: &'a mut Link,
    rank: Rank,
    batches: Batches,
    saves: Saves,
    /// On the first rank.
    metrics: Option<StepMetrics>,
    device: Device,
    program: Option<Program>,
    total_steps: u64,
    train_s: f64,
    clock: Clock,
    nodes: usize,
    measured: Measured,
}

impl<'a> Trainer<'a> {
    fn load(
        options: &Options,
        plan: &'a TrainPlan,
        dataset: &'a Dataset,
        (run, ranks): (Run, Ranks),
        device: Device,
        link: &'a mut Link,
    ) -> Result<Trainer<'a>> {
        let mut rank = Rank::of_plan(plan, device, ranks)?;
        let attempt = Attempt(options.attempt);
        if rank.ranks.is_first() {
            let dataset = dataset.fingerprint().to_string();
            run.keep_start(attempt, &Start { dataset, plan: plan.clone() })?;
        }
        load::state(&mut rank, plan, &run, attempt, link)?;
        let depths = rank.network.graph.depths();
        let batches = Batches::new(dataset, plan, depths, device)?;
        let mut metrics = None;
        if rank.ranks.is_first() {
            let tokenizer = options.run_dir.join("tokenizer");
            if !tokenizer.exists() {
                std::fs::create_dir(&tokenizer)
                    .with_context(|| format!("creating {}", tokenizer.display()))?;
                dataset.tokenizer().save(&tokenizer)?;
            }
            let peak = machine::peak_flops(plan.compute, device) * plan.parallel.data as f64;
            let began = Began { attempt: options.attempt, step: rank.state.progress.step };
            metrics = Some(StepMetrics::open(&options.run_dir, began, plan, peak)?);
        }
        let saves = Saves::new(run, attempt, plan, &rank, device)?;
        let trace = || {
            let path = TraceFile::path(&options.run_dir, options.rank, options.attempt);
            let created = TraceFile::create(&path, options.rank);
            created.with_context(|| format!("creating {}", path.display()))
        };
        let trace = options.trace.then(trace).transpose()?;
        Ok(Trainer {
            plan,
            dataset,
            link,
            rank,
            batches,
            saves,
            metrics,
            device,
            program: None,
            total_steps: lr::steps(plan),
            train_s: 0.0,
            clock: Clock::tracing(trace),
            nodes: options.nodes,
            measured: Measured::default(),
        })
    }

    /// Steps until the plan's tokens are consumed, a suspend is asked for, or the deadline passes.
    fn steps(&mut self) -> Result<End> {
        while self.rank.state.progress.step < self.total_steps {
            let started = Instant::now();
            let data = self.data();
            let valid: usize = data.iter().map(|batch| batch.valid_targets(0)).sum();
            let agreed = self.agree(valid)?;
            if let Some(stay_stopped) = agreed.suspend {
                return self.suspend(stay_stopped);
            }
            if agreed.deadline {
                return Ok(End::Deadline);
            }
            self.step(&data, agreed.valid, started)?;
            let step = self.rank.state.progress.step;
            let every = self.plan.eval.every_steps;
            if every > 0 && step.is_multiple_of(every) && step < self.total_steps {
                self.evaluate(self.plan.eval.tokens, false)?;
            }
            let at_end = step == self.total_steps;
            let due = (agreed.save, agreed.saving);
            self.saves.periodic(&self.rank, self.link, due, at_end)?;
            self.note_saves()?;
        }
        Ok(End::Finished)
    }

    fn note_saves(&mut self) -> Result<()> {
        let events = self.saves.events();
        let Some(metrics) = &mut self.metrics else { return Ok(()) };
        Ok(events.iter().try_for_each(|event| metrics.save(event))?)
    }

    /// This rank's micro-batches of the next step.
    fn data(&mut self) -> Vec<Batch> {
        let before = self.rank.state.progress;
        let sequences = lr::sequences_at(self.plan, before.tokens);
        let started = Instant::now();
        let micro_batch = self.plan.batch.micro_batch;
        let batches = self.batches.step(before, sequences, micro_batch, &self.rank.ranks);
        self.clock.span(Track::Data, "batches", started);
        batches
    }

    /// What all ranks know of each other at a step boundary: one sum of a few integers. An order that has reached any
    /// rank holds for all; the first rank's clock decides about saves.
    fn agree(&mut self, valid: usize) -> Result<Agreed> {
        let order = self.link.suspend();
        let (due, in_flight) = self.saves.due();
        let mut sums = [
            i64::from(order.is_some()),
            i64::from(order == Some(true)),
            i64::from(self.link.past_deadline()),
            i64::from(due && self.rank.ranks.is_first()),
            i64::from(in_flight),
            i64::try_from(valid)?,
        ];
        let (ranks, now) = (&self.rank.ranks, Instant::now());
        self.clock.wait(Awaited::Agreement, now, || -> Result<(Instant, ())> {
            ranks.sum_integers(&mut sums)?;
            Ok((Instant::now(), ()))
        })?;
        let [suspend, stay_stopped, deadline, due, in_flight, valid] = sums;
        Ok(Agreed {
            suspend: (suspend > 0).then_some(stay_stopped > 0),
            deadline: deadline > 0,
            save: due > 0,
            saving: in_flight > 0,
            valid: usize::try_from(valid)?,
        })
    }

    /// One optimizer step on this rank's `data`; `valid` targets count in the global batch.
    fn step(&mut self, data: &[Batch], valid: usize, started: Instant) -> Result<()> {
        let before = self.rank.state.progress;
        let sequences = lr::sequences_at(self.plan, before.tokens);
        let step_tokens = (sequences * self.plan.batch.sequence_length) as u64;
        let depths = self.rank.network.graph.depths();
        let input = StepInput {
            batches: data.iter().map(|batch| self.batches.upload(batch)).collect(),
            loss_scales: loss_scales(self.plan, before.tokens, valid, depths),
            balance_scale: 1.0 / sequences as f64,
            lr: lr::learning_rate(&self.plan.schedule, before.tokens + step_tokens),
            bias_speed: lr::bias_update_speed(self.plan, before.tokens),
        };
        let program = self.program(input.batches.len());
        let optimizer = &self.plan.optimizer;
        let report = self.rank.executor(optimizer, &mut self.clock).run(&program, &input)?;
        self.program = Some(program);

        let progress = &mut self.rank.state.progress;
        progress.step += 1;
        progress.samples += sequences as u64;
        progress.tokens += step_tokens;
        let step_s = started.elapsed().as_secs_f64();
        self.train_s += step_s;
        self.measured.step(self.clock.take_log(), step_s, self.rank.ranks.sent_between_nodes());
        self.report(&report, &input, valid, step_tokens, step_s)
    }

    /// The step program for this many micro-batches; the last one is kept, since it changes only during a batch ramp.
    fn program(&mut self, micro_batches: usize) -> Program {
        match self.program.take() {
            Some(program) if program.micro_batches == micro_batches => program,
            _ => self.rank.share.program_of(micro_batches),
        }
    }

    fn report(
        &mut self,
        report: &StepReport,
        input: &StepInput,
        valid: usize,
        step_tokens: u64,
        step_s: f64,
    ) -> Result<()> {
        let progress = self.rank.state.progress;
        let norm = report.grad_norm.map_or(0.0, |g| g.norm);
        let loss = report.loss_sums[0] / valid as f64;
        self.link.send(Body::StepDone(rank::StepDone {
            step: progress.step,
            total_steps: self.total_steps,
            tokens: progress.tokens,
            loss,
            lr: input.lr,
            grad_norm: norm,
            tokens_per_s: step_tokens as f64 / step_s,
            step_s,
        }));
        let every = self.plan.output.log_every_steps;
        if every > 0 && progress.step.is_multiple_of(every) || progress.step == self.total_steps {
            let epochs = self.batches.epochs(progress);
            let speed = (step_tokens, step_s);
            if let Some(metrics) = &mut self.metrics {
                metrics.step(progress, report, input, (valid, epochs), speed)?;
            }
        }
        Ok(())
    }

    /// Nothing where no text is held out.
    fn evaluate(&mut self, tokens: u64, is_final: bool) -> Result<()> {
        if self.dataset.manifest().validation.tokens == 0 {
            return Ok(());
        }
        let windows = self.dataset.validation(self.plan.batch.sequence_length, tokens);
        let rows = self.plan.batch.micro_batch;
        let link = &mut self.link;
        let mut last = Instant::now();
        let result = eval::evaluate(
            &mut self.rank.reader()?,
            &windows,
            rows,
            self.device,
            |done, total| {
                if last.elapsed().as_secs_f64() > 0.5 {
                    last = Instant::now();
                    let what = "evaluating".to_string();
                    link.send(Body::Operation(rank::Operation { what, done, total }));
                }
            },
        )?;
        let step = self.rank.state.progress.step;
        if let Some(metrics) = &mut self.metrics {
            metrics.evaluation(step, &result)?;
        }
        self.saves.validation_loss = Some((step, result.nats_per_token));
        self.link.send(Body::Evaluated(rank::Evaluated {
            step,
            nats_per_token: result.nats_per_token,
            bits_per_byte: result.bits_per_byte,
            tokens: result.tokens,
            bytes: result.bytes,
            is_final,
        }));
        Ok(())
    }

    fn suspend(&mut self, stay_stopped: bool) -> Result<End> {
        self.saves.now(&self.rank, self.link)?;
        self.saves.free_memory();
        self.note_saves()?;
        let step = self.rank.state.progress.step;
        self.link.send(Body::Suspended(rank::Suspended { step, stay_stopped }));
        Ok(End::Suspended { stay_stopped })
    }

    /// What follows the last step, unless training ended before it. Final checkpoint first: an evaluation must not be able to
    /// lose the weights.
    fn finish(&mut self, end: End) -> Result<End> {
        if end != End::Finished {
            return Ok(end);
        }
        if self.plan.checkpoint.at_end {
            self.saves.now(&self.rank, self.link)?;
        }
        self.saves.drain(self.link)?;
        self.saves.free_memory();
        self.note_saves()?;
        if let (true, Some(program)) = (self.rank.ranks.is_first(), &self.program) {
            let text = self.measured.beside_plan(self.plan, &self.rank, (program, self.nodes));
            self.link.send(Body::Note(rank::Note { severity: Severity::Info.into(), text }));
        }
        self.evaluate(self.plan.eval.final_tokens, true)?;
        self.sample()?;
        let progress = self.rank.state.progress;
        self.link.send(Body::Finished(rank::Finished {
            step: progress.step,
            tokens: progress.tokens,
            train_s: self.train_s,
        }));
        Ok(End::Finished)
    }

    /// Text for a person to look at: training has ended well, whatever becomes of it.
    fn sample(&mut self) -> Result<()> {
        let (is_first, mesh) = (self.rank.ranks.is_first(), self.rank.ranks.mesh());
        // Where experts are spread over ranks, all of them take part in every token; each draws the same.
        if !is_first && mesh.expert == 1 {
            return Ok(());
        }
        let tokenizer = self.dataset.tokenizer();
        let written = sampling::sample(self.plan, tokenizer, &mut self.rank.reader()?, self.device);
        let said = match written {
            Ok(None) => return Ok(()),
            Ok(Some(text)) => {
                let prompt = self.plan.output.sample_prompt.clone();
                Body::Sample(rank::Sample { prompt, text })
            }
            Err(error) => {
                let text = format!("there is no sample (output.sample_prompt): {error:#}");
                // Others may wait for this rank's part of the next token.
                if mesh.expert > 1 {
                    self.rank.ranks.abort(&text);
                }
                Body::Note(rank::Note { severity: Severity::Warning.into(), text })
            }
        };
        if is_first {
            self.link.send(said);
        }
        Ok(())
    }
}

/// Factors of the summed losses: 1 / (valid tokens of the global batch); MTP lambda / D over the same tokens
/// (DeepSeek-V3, formulas 24 and 25).
pub fn loss_scales(plan: &TrainPlan, tokens: u64, valid: usize, depths: usize) -> Vec<f64> {
    let mtp = lr::mtp_loss_weight(plan, tokens) / (depths - 1).max(1) as f64;
    let weight = |depth: usize| if depth == 0 { 1.0 } else { mtp };
    (0..depths).map(|depth| weight(depth) / valid.max(1) as f64).collect()
}
