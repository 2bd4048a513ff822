//! The thread that decides. It alone has the core and the database: take a batch, step, commit, act.
//!
//! If a commit fails, nothing of the batch has happened: callers get the error, connections of workers are closed (workers
//! connect again and say what still matters), and the core is built again from what is durable.

use super::clock::Clock;
use super::effects::Effect;
use super::link::{EngineLink, Message, Outbox, Reply, Said, Submission};
use super::queues::{Batch, Queues};
use super::view::View;
use super::{FailPoint, check, convert, refuse};
use crate::core::{
    Action, Answer, Command, Event, NodeName, Policy, Progress, Record, Refusal, Scheduler,
};
use crate::error::Error;
use crate::limits;
use crate::store::{Commit, Store};
use lampyris_proto::{Attempt, JobId, v1};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Notify, broadcast, mpsc, oneshot, watch};
use tonic::Status;

/// A worker's connection.
pub(super) struct Session {
    pub(super) number: u64,
    pub(super) outbox: Outbox,
}

/// The core with everything around it; see the module.
pub(super) struct Engine {
    pub(super) policy: Policy,
    pub(super) fail_point: Option<FailPoint>,
    pub(super) view: View,
    pub(super) sessions: BTreeMap<NodeName, Session>,
    pub(super) next_session: u64,
    pub(super) run_dirs: BTreeMap<String, JobId>,
    pub(super) commit: Commit,
    pub(super) effects: Vec<Effect>,
    pub(super) left: Vec<(NodeName, u64)>,
    pub(super) disk_failed: bool,
    pub(super) changed: broadcast::Sender<JobId>,
    pub(super) progressed: broadcast::Sender<JobId>,
    pub(super) last_event: watch::Sender<u64>,
    pub(super) serving: watch::Sender<bool>,
}

impl Engine {
    pub(super) fn new(
        policy: Policy,
        mut store: Store,
        fail_point: Option<FailPoint>,
    ) -> Result<Engine, Error> {
        let loaded = store.load()?;
        let clock = Clock::resume(loaded.clock, loaded.segments);
        store.begin_segment(clock.base(), super::clock::wall_ms())?;
        let core = Scheduler::restore(policy.clone(), clock.now(), loaded.snapshot);
        let last_event = watch::Sender::new(store.last_event());
        let mut engine = Engine {
            policy,
            fail_point,
            next_session: clock.base().0,
            view: View {
                core,
                store,
                clock,
                runs: loaded.runs,
                live: BTreeMap::new(),
                hardware: BTreeMap::new(),
            },
            sessions: BTreeMap::new(),
            run_dirs: BTreeMap::new(),
            commit: Commit::default(),
            effects: Vec::new(),
            left: Vec::new(),
            disk_failed: false,
            changed: broadcast::Sender::new(limits::CHANGES),
            progressed: broadcast::Sender::new(limits::CHANGES),
            last_event,
            serving: watch::Sender::new(false),
        };
        engine.index_run_dirs();
        Ok(engine)
    }

    /// Runs on a thread of its own until [`EngineLink::close`]; the receiver hears of a failure.
    pub(super) fn spawn(self) -> (EngineLink, oneshot::Receiver<String>) {
        let (workers, worker_queue) = mpsc::channel(limits::WORKER_QUEUE);
        let (commands, command_queue) = mpsc::channel(limits::COMMAND_QUEUE);
        let (looks, look_queue) = mpsc::channel(limits::LOOK_QUEUE);
        let queues = Queues { workers: worker_queue, commands: command_queue, looks: look_queue };
        let (failed, ended) = oneshot::channel();
        let closing = Arc::new(Notify::new());
        let link = EngineLink {
            workers,
            commands,
            looks,
            changed: self.changed.clone(),
            progressed: self.progressed.clone(),
            last_event: self.last_event.subscribe(),
            serving: self.serving.subscribe(),
            closing: closing.clone(),
            logs: Arc::default(),
        };
        let run = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
            let result = match runtime {
                Ok(runtime) => runtime.block_on(self.run(queues, &closing)),
                Err(error) => Err(error.to_string()),
            };
            if let Err(error) = result {
                failed.send(error).ok();
            }
        };
        if let Err(error) = std::thread::Builder::new().name("decide".to_owned()).spawn(run) {
            // The receiver finds its sender gone.
            tracing::error!(%error, "no thread for the engine");
        }
        (link, ended)
    }

    async fn run(mut self, mut queues: Queues, closing: &Notify) -> Result<(), String> {
        loop {
            self.show_health();
            let wakeup = self.view.core.next_wakeup().map(|at| self.view.clock.until(at));
            let idle = std::time::Duration::from_secs(3600);
            let mut batch = Batch::default();
            tokio::select! {
                biased;
                () = closing.notified() => return Ok(()),
                is_open = queues.receive(&mut batch) => {
                    if !is_open {
                        return Ok(());
                    }
                }
                () = tokio::time::sleep(wakeup.unwrap_or(idle)) => {}
            }
            queues.fill(&mut batch);
            for message in batch.messages {
                self.take(message);
            }
            for (node, session) in std::mem::take(&mut self.left) {
                self.step(Event::Disconnected { node, session });
            }
            let now = self.view.clock.now();
            if self.view.core.next_wakeup().is_some_and(|at| at <= now) {
                self.step(Event::Tick);
            }
            self.finish_batch().map_err(|error| error.to_string())?;
            // Readers see only what is durable, and heartbeats are answered by now.
            for look in batch.looks {
                look(&self.view);
            }
        }
    }

    pub(super) fn take(&mut self, message: Message) {
        match message {
            Message::Submit(submission, reply) => self.submit(*submission, reply),
            Message::OnJob(command, job, reply) => {
                let answer = self.command(command).map(|_| job);
                self.effects.push(Effect::Job(reply, answer));
            }
            Message::Other(command, reply) => {
                let answer = self.command(command).map(|_| ());
                self.effects.push(Effect::Other(reply, answer));
            }
            Message::Join(register, outbox, reply) => self.join(*register, outbox, reply),
            Message::Worker { node, session, said } => self.worker(node, session, said),
            Message::Left { node, session } => {
                if self.sessions.get(&node).is_some_and(|known| known.number == session) {
                    self.sessions.remove(&node);
                }
                self.step(Event::Disconnected { node, session });
            }
            Message::ReadLog(request, routes, reply) => {
                reply.send(self.read_log(&request, &routes)).ok();
            }
            Message::StopLog { node, session, id } => self.stop_log(&node, session, id),
        }
    }

    /// One step of the core; its actions wait for the commit. Gives the answer to a command and whether a connection
    /// was refused.
    fn step(&mut self, event: Event) -> (Option<Result<Answer, Refusal>>, Option<Status>) {
        let now = self.view.clock.now();
        let actions = self.view.core.step(now, event);
        let (mut answered, mut refused) = (None, None);
        for action in actions {
            match action {
                Action::Answer { answer, .. } => answered = Some(answer),
                Action::Record(record) => {
                    let wall_ms = self.view.clock.wall_ms(now);
                    self.commit.records.push((wall_ms, record));
                }
                action => {
                    if let Action::Reject { reason, .. } = &action {
                        refused = Some(refuse::of_reason(reason));
                    }
                    self.effects.push(Effect::Act(action));
                }
            }
        }
        (answered, refused)
    }

    fn command(&mut self, command: Command) -> Result<Answer, Status> {
        let (answered, _) = self.step(Event::Command { ticket: 0, command });
        let answer = answered.ok_or_else(|| Status::internal("the core gave no answer"))?;
        answer.map_err(|refusal| refuse::of_refusal(&refusal))
    }

    fn submit(&mut self, submission: Submission, reply: Reply<v1::Job>) {
        let answer = self.try_submit(submission);
        self.effects.push(Effect::Job(reply, answer));
    }

    fn try_submit(&mut self, submission: Submission) -> Result<JobId, Status> {
        let Submission { request_id, spec, run, validate_only } = submission;
        let core = &self.view.core;
        if validate_only {
            core.validate(&request_id, &spec).map_err(|r| refuse::of_refusal(&r))?;
            return Ok(JobId(0));
        }
        if let Some(known) = core.job_of_request(&request_id) {
            if self.view.runs.get(&known).is_some_and(|other| *other != run) {
                let refusal = Refusal::RequestIdTaken { request_id, job: known };
                return Err(refuse::of_refusal(&refusal));
            }
        } else if let Some(user) = self.run_dirs.get(&run.run_dir)
            && core.job(*user).is_some_and(|job| !job.state.is_terminal())
        {
            let text =
                format!("run directory {} belongs to job {user}, which has not ended", run.run_dir);
            return Err(Status::failed_precondition(text));
        }
        let next = core.next_job();
        match self.command(Command::Submit { request_id, spec })? {
            Answer::Job(id) => {
                if self.view.core.next_job() != next {
                    self.run_dirs.insert(run.run_dir.clone(), id);
                    self.view.runs.insert(id, run.clone());
                    self.commit.runs.push((id, run));
                }
                Ok(id)
            }
            Answer::Done => Err(Status::internal("a submission gives a job")),
        }
    }

    fn join(&mut self, register: v1::Register, outbox: Outbox, reply: Reply<(NodeName, u64)>) {
        self.next_session = self.next_session.saturating_add(1);
        let number = self.next_session;
        let last = convert::last_progress(&register);
        let (registration, hardware) = match convert::registration(register, number) {
            Ok(registration) => registration,
            Err(status) => return self.effects.push(Effect::Refused(reply, status)),
        };
        let node = registration.node.clone();
        if let Some(reason) = self.view.core.why_refused(&registration) {
            tracing::warn!(%node, %reason, "refused a worker");
            return self.effects.push(Effect::Refused(reply, refuse::of_reason(&reason)));
        }
        for (job, attempt, last) in last {
            self.progress(&node, (job, attempt), last);
        }
        let before = self.effects.len();
        self.step(Event::Registered(registration));
        self.view.hardware.insert(node.clone(), hardware);
        let session = Session { number, outbox };
        if let Some(older) = self.sessions.insert(node.clone(), session) {
            older
                .outbox
                .try_send(Err(Status::aborted("another connection of this node is newer")))
                .ok();
        }
        // The worker hears that it is in before it hears anything else.
        self.effects.insert(before, Effect::Joined(reply, node, number));
    }

    fn worker(&mut self, node: NodeName, session: u64, said: Said) {
        match said {
            Said::Heartbeat(heartbeat) => self.heartbeat(node, session, heartbeat),
            Said::Left => {
                self.step(Event::Left { node, session });
            }
            Said::Started(job, attempt) => {
                self.step(Event::AttemptStarted { node, session, job, attempt });
            }
            Said::Ended { job, attempt, outcome, last } => {
                let of_session = self.is_session(&node, session);
                let last = last.filter(|_| of_session);
                let last = last.and_then(|last| self.progress(&node, (job, attempt), last));
                if let Some(last) = last {
                    let (node, progress) = (node.clone(), vec![last]);
                    self.step(Event::Heartbeat { node, session, progress });
                }
                self.step(Event::AttemptEnded { node, session, job, attempt, outcome });
            }
        }
    }

    /// Whether a session is the newest of its node: what others say is not believed.
    fn is_session(&self, node: &NodeName, session: u64) -> bool {
        self.sessions.get(node).is_some_and(|known| known.number == session)
    }

    fn heartbeat(&mut self, node: NodeName, session: u64, heartbeat: v1::Heartbeat) {
        let mut progress = Vec::new();
        let believed = self.is_session(&node, session);
        for attempt in heartbeat.attempts.into_iter().filter(|_| believed) {
            let key = (JobId(attempt.job), Attempt(attempt.attempt));
            let news = attempt.progress.and_then(|news| self.progress(&node, key, news));
            progress.extend(news);
        }
        let event = Event::Heartbeat { node: node.clone(), session, progress };
        if self.step(event).1.is_none() {
            let sequence = heartbeat.sequence;
            self.effects.push(Effect::Ack { node, session, sequence });
        }
    }

    /// Shows how far an attempt is on a node, and gives what the core wants to know of it; nothing if the node has no part
    /// in it, or it is not the newest.
    fn progress(
        &mut self,
        node: &NodeName,
        (job, attempt): (JobId, Attempt),
        mut news: v1::Progress,
    ) -> Option<(JobId, Attempt, Progress)> {
        let index = self.view.core.place_in(node, job, attempt)?;
        let ranks_per_node = self.view.runs.get(&job).map_or(0, |run| run.ranks_per_node);
        check::progress(&mut news, index as u64, ranks_per_node.into(), &node.0);
        let progress = convert::progress(&news);
        self.view.live.entry(job).or_default().update(attempt, news);
        // Nobody may be watching.
        self.progressed.send(job).ok();
        Some((job, attempt, progress))
    }

    /// Makes the batch durable, then does what it wants done.
    pub(super) fn finish_batch(&mut self) -> Result<(), Error> {
        let mut commit = std::mem::take(&mut self.commit);
        commit.changes = self.view.core.take_changes();
        let effects = std::mem::take(&mut self.effects);
        if !commit.is_empty() {
            self.fail_here(&commit, false);
            let now = self.view.clock.now();
            if let Err(error) = self.view.store.commit(&self.view.core, now, &commit) {
                return self.roll_back(&error, effects);
            }
            self.disk_failed = false;
            self.fail_here(&commit, true);
            self.last_event.send_replace(self.view.store.last_event());
        }
        for effect in effects {
            self.carry_out(effect);
        }
        self.after_commit(&commit);
        Ok(())
    }

    fn after_commit(&mut self, commit: &Commit) {
        for id in &commit.changes.jobs {
            if self.view.core.job(*id).is_some_and(|job| job.state.is_terminal())
                && let Some(live) = self.view.live.get_mut(id)
            {
                live.forget_ranks();
            }
            self.changed.send(*id).ok();
        }
        for id in &commit.changes.removed_jobs {
            self.view.live.remove(id);
            if let Some(run) = self.view.runs.remove(id)
                && self.run_dirs.get(&run.run_dir) == Some(id)
            {
                self.run_dirs.remove(&run.run_dir);
            }
        }
    }

    /// Dies where a test wants it.
    fn fail_here(&self, commit: &Commit, after: bool) {
        let Some(point) = self.fail_point.as_ref().filter(|point| point.after_commit == after)
        else {
            return;
        };
        let is_it =
            |(_, record): &(i64, Record)| convert::to_reason(&record.reason).code == point.reason;
        if commit.records.iter().any(is_it) {
            std::process::abort();
        }
    }

    pub(super) fn index_run_dirs(&mut self) {
        let runs = self.view.runs.iter();
        self.run_dirs = runs.map(|(id, run)| (run.run_dir.clone(), *id)).collect();
    }

    fn show_health(&self) {
        let serving = !self.view.core.is_recovering() && !self.disk_failed;
        self.serving.send_if_modified(|shown| std::mem::replace(shown, serving) != serving);
    }
}
