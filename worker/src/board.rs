//! What the ranks of one node are at, gathered from the shim's events: the source of heartbeats, of `lampyris show`, and of
//! the watch for hangs and stragglers.

use crate::shim::Event;
use lampyris_proto::rank::from_rank::Body;
use lampyris_proto::rank::{Evaluated, Operation, Saved, StepDone};
use lampyris_proto::{Rank, v1};
use std::time::Instant;

/// Keeps the newest word of each rank.
#[derive(Debug)]
pub(crate) struct Board {
    node: String,
    first_rank: Rank,
    ranks: Vec<At>,
    total_steps: u64,
    saved_step: u64,
    save_ms: u64,
    operations: u64,
    figures: Option<v1::StepFigures>,
}

#[derive(Debug)]
struct At {
    step: u64,
    operation: String,
    since: Instant,
    pid: u32,
}

impl Board {
    /// For `ranks` ranks from `first_rank` up, on the node of that name.
    pub(crate) fn new(node: String, first_rank: Rank, ranks: usize, now: Instant) -> Board {
        let at = |_| At { step: 0, operation: "starting".into(), since: now, pid: 0 };
        let ranks = (0..ranks).map(at).collect();
        let (total_steps, saved_step, save_ms, operations) = (0, 0, 0, 0);
        let figures = None;
        Board { node, first_rank, ranks, total_steps, saved_step, save_ms, operations, figures }
    }

    /// Takes in what happened.
    pub(crate) fn note(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Started { rank, pid, .. } => {
                if let Some(at) = self.at(*rank) {
                    at.pid = *pid;
                }
            }
            Event::Said { rank, body } => self.said(*rank, body, now),
            Event::Suspending { .. } => self.operations += 1,
            Event::NotAtBoundary { .. } => {}
        }
    }

    fn at(&mut self, rank: Rank) -> Option<&mut At> {
        let index = rank.0.checked_sub(self.first_rank.0)?;
        self.ranks.get_mut(index as usize)
    }

    fn said(&mut self, rank: Rank, body: &Body, now: Instant) {
        match body {
            Body::StepDone(done) => self.step_done(rank, done, now),
            Body::Operation(operation) => self.begins(rank, operation_text(operation), now),
            Body::Ready(_) => self.begins(rank, "ready".into(), now),
            Body::Suspended(_) => self.begins(rank, "suspended".into(), now),
            Body::Finished(_) => self.begins(rank, "finished".into(), now),
            Body::Failed(failed) => self.begins(rank, format!("failed: {}", failed.message), now),
            Body::Saved(saved) => self.saved(saved),
            Body::Evaluated(evaluated) => self.evaluated(evaluated),
            Body::Sample(_) | Body::Note(_) => {}
        }
    }

    fn step_done(&mut self, rank: Rank, done: &StepDone, now: Instant) {
        self.total_steps = done.total_steps;
        if let Some(at) = self.at(rank) {
            (at.step, at.since) = (done.step, now);
            at.operation.clear();
        }
        if rank == Rank(0) {
            self.figures = Some(v1::StepFigures {
                tokens: done.tokens,
                loss: done.loss,
                lr: done.lr,
                grad_norm: done.grad_norm,
                tokens_per_s: done.tokens_per_s,
                step_s: done.step_s,
                bits_per_byte: self.figures.and_then(|figures| figures.bits_per_byte),
            });
        }
    }

    fn begins(&mut self, rank: Rank, operation: String, now: Instant) {
        self.operations += 1;
        if let Some(at) = self.at(rank) {
            (at.operation, at.since) = (operation, now);
        }
    }

    fn saved(&mut self, saved: &Saved) {
        self.operations += 1;
        self.saved_step = self.saved_step.max(saved.step);
        // At least 1: 0 means that nothing was measured.
        self.save_ms = ((saved.save_s * 1e3) as u64).max(1);
    }

    fn evaluated(&mut self, evaluated: &Evaluated) {
        self.operations += 1;
        if let Some(figures) = &mut self.figures {
            figures.bits_per_byte = Some(evaluated.bits_per_byte);
        }
    }

    /// Processes of the ranks that exist, in order.
    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        self.ranks.iter().map(|at| at.pid).filter(|pid| *pid != 0)
    }

    /// How far the ranks are.
    pub(crate) fn progress(&self, now: Instant) -> v1::Progress {
        let rank = |(index, at): (usize, &At)| v1::RankProgress {
            rank: self.first_rank.0 + index as u64,
            node: self.node.clone(),
            step: at.step,
            operation: at.operation.clone(),
            since_ms: now.saturating_duration_since(at.since).as_millis() as u64,
            pid: at.pid,
        };
        v1::Progress {
            step: self.ranks.iter().map(|at| at.step).min().unwrap_or(0),
            total_steps: self.total_steps,
            saved_step: self.saved_step,
            save_ms: self.save_ms,
            operations: self.operations,
            figures: self.figures,
            ranks: self.ranks.iter().enumerate().map(rank).collect(),
        }
    }
}

fn operation_text(operation: &Operation) -> String {
    match operation.total {
        0 => operation.what.clone(),
        total => format!("{} {}/{total}", operation.what, operation.done),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_slowest_rank_and_what_each_is_at() {
        let start = Instant::now();
        let mut board = Board::new("n2".into(), Rank(2), 2, start);
        let mut said = |rank, body, seconds| {
            let event = Event::Said { rank: Rank(rank), body };
            board.note(&event, start + Duration::from_secs(seconds));
        };
        let done = |step| Body::StepDone(StepDone { step, total_steps: 9, ..Default::default() });
        said(2, done(4), 1);
        said(3, done(3), 1);
        let what = Operation { what: "saving".into(), done: 1, total: 2 };
        said(3, Body::Operation(what), 5);
        said(2, Body::Saved(Saved { step: 3, save_s: 0.25, ..Default::default() }), 6);
        // A rank of another node is not this board's.
        said(0, done(8), 7);
        let progress = board.progress(start + Duration::from_secs(8));
        assert_eq!((progress.step, progress.total_steps), (3, 9));
        assert_eq!((progress.saved_step, progress.save_ms, progress.operations), (3, 250, 2));
        let at = &progress.ranks[1];
        assert_eq!((at.rank, at.step, at.since_ms), (3, 3, 3000));
        assert_eq!(at.operation, "saving 1/2");
        assert_eq!(progress.ranks[0].since_ms, 7000);
        assert_eq!(progress.ranks[0].operation, "");
    }
}
