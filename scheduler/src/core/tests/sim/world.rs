//! The simulated world: one queue of things that happen, in order of time.

use super::oracle::{self, Oracle};
use super::people::{self, Happens};
use super::rng::Rng;
use super::run::{Happening, Part, Run, RunKey, STEP_MS, failed};
use super::worker::{ToWorker, Worker};
use crate::core::{
    Action, Bug, Command, Event, FailureClass, JobSpec, NodeName, Registration, Scheduler,
    Snapshot, Time,
};
use lampyris_proto::{Attempt, JobId};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Faults and new jobs stop at this time.
const FAULTS_UNTIL: u64 = 40_000;
/// Everything has ended by then.
const ENDS: u64 = 400_000;
const HEARTBEAT_MS: u64 = 700;

/// What waits to happen.
#[derive(Debug, Clone)]
enum Due {
    /// Worker, session, when it was sent, what.
    ToScheduler(usize, u64, u64, Event),
    ToWorker(usize, u64, ToWorker),
    /// The scheduler notices that a connection is gone.
    Gone(usize, u64),
    Beat(usize),
    Lease(usize),
    Loaded(RunKey, usize),
    Train(RunKey),
    Ended(RunKey, usize),
    Happens(Happens),
    Submit(String, Box<JobSpec>),
    SchedulerBack,
    Wake,
    Heal,
}

/// What a run of the simulation amounted to.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    pub(super) history_hash: u64,
    steps: u64,
    jobs: u64,
    attempts: u64,
    preemptions: u64,
    losses: u64,
    restarts: u64,
    suspends: u64,
}

impl Outcome {
    pub(super) fn add(&mut self, other: &Outcome) {
        self.steps += other.steps;
        self.jobs += other.jobs;
        self.attempts += other.attempts;
        self.preemptions += other.preemptions;
        self.losses += other.losses;
        self.restarts += other.restarts;
        self.suspends += other.suspends;
    }

    pub(super) fn list(&self) -> [(&'static str, u64); 5] {
        [
            ("an attempt", self.attempts),
            ("a preemption", self.preemptions),
            ("a loss of a node", self.losses),
            ("a restart", self.restarts),
            ("a suspend", self.suspends),
        ]
    }
}

pub(super) struct World {
    rng: Rng,
    pub(super) now: u64,
    seq: u64,
    queue: BTreeMap<(u64, u64), Due>,
    pub(super) scheduler: Scheduler,
    disk: Snapshot,
    events: Vec<(Time, Event)>,
    /// The core as it was when `events` began.
    restored: Scheduler,
    scheduler_up: bool,
    sessions: u64,
    wake_at: Option<u64>,
    pub(super) workers: Vec<Worker>,
    pub(super) runs: BTreeMap<RunKey, Run>,
    pub(super) specs: BTreeMap<JobId, JobSpec>,
    oracle: Option<Oracle>,
    hasher: DefaultHasher,
    outcome: Outcome,
    faults: bool,
    bug: Option<Bug>,
    pub(super) talkative: bool,
}

impl World {
    pub(super) fn new(seed: u64, bug: Option<Bug>) -> World {
        let mut rng = Rng::new(seed);
        let mut scheduler = Scheduler::new(people::policy());
        scheduler.plant(bug);
        let workers = people::cluster(&mut rng).into_iter().map(|(name, capacity)| Worker {
            name,
            capacity,
            boot: 1,
            session: None,
            away_until: 0,
            lease_ends: 0,
            journal: BTreeMap::new(),
            newest: BTreeMap::new(),
            last_up: 0,
            last_down: 0,
        });
        let workers: Vec<Worker> = workers.collect();
        let mut world = World {
            rng,
            now: 0,
            seq: 0,
            queue: BTreeMap::new(),
            disk: scheduler.snapshot(),
            restored: scheduler.clone(),
            scheduler,
            events: Vec::new(),
            scheduler_up: true,
            sessions: 0,
            wake_at: None,
            workers,
            runs: BTreeMap::new(),
            specs: BTreeMap::new(),
            oracle: Some(Oracle::default()),
            hasher: DefaultHasher::new(),
            outcome: Outcome::default(),
            faults: true,
            bug,
            talkative: false,
        };
        world.draw_history();
        world
    }

    /// Everything that will befall this world.
    fn draw_history(&mut self) {
        for index in 0..self.workers.len() {
            let at = self.rng.within(0, 300);
            self.due(at, Due::Beat(index));
        }
        let names: Vec<NodeName> = self.workers.iter().map(|w| w.name.clone()).collect();
        let jobs = self.rng.within(8, 18);
        for index in 0..jobs {
            let spec = people::spec(&mut self.rng, names.len() as u64);
            let at = self.rng.within(0, FAULTS_UNTIL * 3 / 4);
            self.due(at, Due::Submit(format!("r{index}"), Box::new(spec)));
        }
        for _ in 0..self.rng.within(0, 2) {
            let quota = people::quota(&mut self.rng);
            self.due(0, Due::Happens(Happens::Ask(Command::SetQuota(quota))));
        }
        // Some worlds are calm: starvation and order show only where nothing else happens.
        let faults = if self.rng.chance(25) { 0 } else { self.rng.within(5, 40) };
        for _ in 0..faults {
            let at = self.rng.within(500, FAULTS_UNTIL);
            let what = people::something(&mut self.rng, &names, jobs);
            self.due(at, Due::Happens(what));
        }
        self.due(FAULTS_UNTIL, Due::Heal);
    }

    pub(super) fn total_steps(&self, job: JobId) -> u64 {
        // Different for every job: 2 to 16 seconds of training.
        10 + job.0 * 37 % 70
    }

    fn due(&mut self, at: u64, what: Due) {
        self.seq += 1;
        self.queue.insert((at.max(self.now), self.seq), what);
    }

    pub(super) fn run(mut self) -> Result<Outcome, String> {
        while let Some(((at, _), what)) = self.queue.pop_first() {
            self.now = at;
            if self.now > ENDS || (!self.faults && self.all_over()) {
                break;
            }
            self.happen(what).map_err(|violation| format!("at {} ms: {violation}", self.now))?;
        }
        if let Some(oracle) = &self.oracle {
            oracle.at_the_end(&self).map_err(|what| format!("at {} ms: {what}", self.now))?;
        }
        oracle::durable(&self.disk, &self.scheduler.snapshot())?;
        let restored = self.restored.clone();
        oracle::replay(restored, &self.events, &self.scheduler)?;
        self.outcome.history_hash = self.hasher.finish();
        Ok(self.outcome)
    }

    fn all_over(&self) -> bool {
        self.scheduler.jobs_after(JobId(0)).all(|job| job.state.is_terminal())
    }

    fn happen(&mut self, what: Due) -> Result<(), String> {
        match what {
            Due::ToScheduler(index, session, sent, event) => {
                let here = self.workers[index].session == Some(session);
                if self.scheduler_up && (here || matches!(event, Event::Disconnected { .. })) {
                    return self.step(event, Some((index, sent)));
                }
                Ok(())
            }
            Due::Gone(index, session) if self.scheduler_up => {
                let node = self.workers[index].name.clone();
                self.step(Event::Disconnected { node, session }, None)
            }
            Due::Wake if self.scheduler_up => {
                self.wake_at = None;
                self.step(Event::Tick, None)
            }
            Due::Gone(..) | Due::Wake => Ok(()),
            Due::Submit(request_id, spec) => self.submit(request_id, *spec),
            Due::Happens(Happens::Ask(command)) if self.scheduler_up => self.ask(command),
            Due::SchedulerBack => self.scheduler_back(),
            Due::Heal => self.heal(),
            Due::ToWorker(index, session, message) => {
                if self.workers[index].session == Some(session)
                    && self.workers[index].away_until <= self.now
                {
                    self.receive(index, message);
                }
                self.check()
            }
            Due::Train(key) => self.train(key),
            what => {
                self.quietly(what);
                self.check()
            }
        }
    }

    fn quietly(&mut self, what: Due) {
        match what {
            Due::Beat(index) => self.beat(index),
            Due::Lease(index) => self.lease(index),
            Due::Loaded(key, index) => self.loaded(key, index),
            Due::Ended(key, index) => self.tell_end(key, index),
            Due::Happens(happens) => self.befall(happens),
            _ => {}
        }
    }

    /// One step of the core: decide, make durable, act.
    fn step(&mut self, event: Event, sent: Option<(usize, u64)>) -> Result<(), String> {
        let mut oracle = self.oracle.take().unwrap_or_default();
        let quiet = matches!(event, Event::Heartbeat { .. });
        if !quiet {
            oracle.before(self);
        }
        if self.talkative && !quiet && event != Event::Tick {
            println!("{:>7} {event:?}", self.now);
        }
        let renews = matches!(event, Event::Heartbeat { .. } | Event::Registered(_));
        self.events.push((Time(self.now), event.clone()));
        let actions = self.scheduler.step(Time(self.now), event);
        self.write();
        self.outcome.steps += 1;
        (self.now, actions.len()).hash(&mut self.hasher);
        let verdict = if actions.is_empty() { Ok(()) } else { oracle.after(self, &actions) };
        self.oracle = Some(oracle);
        verdict?;
        // Killed after the commit and before it acts: nobody hears of it.
        if self.faults && !actions.is_empty() && !quiet && self.rng.chance(1) {
            self.befall(Happens::SchedulerDies(200));
            return Ok(());
        }
        let rejected = actions.iter().any(|action| matches!(action, Action::Reject { .. }));
        for action in actions {
            self.act(action);
        }
        if let Some((index, sent)) = sent.filter(|_| renews && !rejected) {
            self.send_down(index, ToWorker::Renewed { sent });
        }
        self.set_alarm();
        Ok(())
    }

    /// What a database would do.
    fn write(&mut self) {
        let changes = self.scheduler.take_changes();
        if changes.is_empty() {
            return;
        }
        self.disk.next_job = self.scheduler.next_job();
        self.disk.jobs.retain(|job| {
            !changes.jobs.contains(&job.id) && !changes.removed_jobs.contains(&job.id)
        });
        let jobs = changes.jobs.iter().filter_map(|id| self.scheduler.job(*id)).cloned();
        self.disk.jobs.extend(jobs);
        self.disk.nodes.retain(|node| !changes.nodes.contains(&node.id));
        let nodes = changes.nodes.iter().map(|id| self.scheduler.node_at(*id).clone());
        self.disk.nodes.extend(nodes);
        self.disk.nodes.sort_by_key(|node| node.id);
        if !changes.quotas.is_empty() {
            self.disk.quotas = self.scheduler.quotas().collect();
        }
    }

    fn act(&mut self, action: Action) {
        if let Action::Record(record) = &action {
            use crate::core::Reason;
            match &record.reason {
                Reason::PreemptedBy { .. } => self.outcome.preemptions += 1,
                Reason::NodeLost { .. } => self.outcome.losses += 1,
                Reason::Placed { .. } => self.outcome.attempts += 1,
                Reason::SuspendedByUser => self.outcome.suspends += 1,
                _ => {}
            }
            if self.talkative {
                println!("{:>7}   {:?}: {}", self.now, record.subject, record.reason);
            }
        }
        if let Some((node, message)) = ToWorker::of(&action) {
            let index = self.workers.iter().position(|worker| worker.name == node);
            let index = index.expect("actions name known nodes");
            // On the connection that the core knows, which may be gone on the other side.
            let session = match &action {
                Action::Reject { session, .. } => Some(*session),
                _ => self.scheduler.node(&node).and_then(|node| node.session),
            };
            if session == self.workers[index].session {
                self.send_down(index, message);
            }
        }
    }

    fn set_alarm(&mut self) {
        let Some(Time(at)) = self.scheduler.next_wakeup() else { return };
        if self.wake_at.is_none_or(|earlier| at < earlier) {
            self.wake_at = Some(at);
            let late = self.rng.within(0, 20);
            self.due(at + late, Due::Wake);
        }
    }

    fn check(&mut self) -> Result<(), String> {
        let mut oracle = self.oracle.take().unwrap_or_default();
        let verdict = oracle.after(self, &[]);
        self.oracle = Some(oracle);
        verdict
    }

    fn submit(&mut self, request_id: String, spec: JobSpec) -> Result<(), String> {
        // A client tries again until it has an answer.
        if !self.scheduler_up {
            let at = self.now + 500;
            self.due(at, Due::Submit(request_id, Box::new(spec)));
            return Ok(());
        }
        let before = self.outcome.restarts;
        let next = JobId(self.scheduler.next_job());
        self.specs.entry(next).or_insert_with(|| spec.clone());
        self.step(
            Event::Command {
                ticket: 1,
                command: Command::Submit { request_id: request_id.clone(), spec: spec.clone() },
            },
            None,
        )?;
        if self.outcome.restarts > before {
            let at = self.now + 500;
            self.due(at, Due::Submit(request_id, Box::new(spec)));
        } else {
            let found = self
                .scheduler
                .jobs_after(JobId(0))
                .find(|job| job.request_id == request_id)
                .map(|job| job.id);
            let id = found.ok_or("a submission was answered and is unknown")?;
            self.specs.insert(id, spec);
            if let Some(oracle) = &mut self.oracle {
                oracle.accepted.insert(id);
            }
            self.outcome.jobs += 1;
        }
        Ok(())
    }

    fn ask(&mut self, command: Command) -> Result<(), String> {
        self.step(Event::Command { ticket: 2, command }, None)
    }

    fn scheduler_back(&mut self) -> Result<(), String> {
        let mut snapshot = self.disk.clone();
        oracle::durable(&snapshot, &self.scheduler.snapshot())?;
        if self.bug == Some(Bug::SecondStart) {
            snapshot = snapshot.without_attempts();
            self.disk = snapshot.clone();
        }
        self.scheduler = Scheduler::restore(people::policy(), Time(self.now), snapshot);
        self.scheduler.plant(self.bug);
        self.restored = self.scheduler.clone();
        self.events.clear();
        self.scheduler_up = true;
        self.wake_at = None;
        self.set_alarm();
        Ok(())
    }

    /// From here on nothing goes wrong any more, and nobody holds anything back.
    fn heal(&mut self) -> Result<(), String> {
        self.faults = false;
        if !self.scheduler_up {
            self.due(self.now + 1_000, Due::Heal);
            return Ok(());
        }
        for worker in &mut self.workers {
            worker.away_until = worker.away_until.min(self.now + 10);
        }
        let jobs: Vec<JobId> = self.scheduler.jobs_after(JobId(0)).map(|job| job.id).collect();
        for job in jobs {
            self.ask(Command::Resume { job })?;
        }
        for index in 0..self.workers.len() {
            let node = self.workers[index].name.clone();
            self.ask(Command::ResumeNode { node, only_host: false })?;
        }
        let quotas: Vec<_> = self.scheduler.quotas().collect();
        for quota in quotas {
            self.ask(Command::RemoveQuota(quota.key))?;
        }
        Ok(())
    }

    fn train(&mut self, key: RunKey) -> Result<(), String> {
        let total = self.total_steps(key.0);
        let Some(run) = self.runs.get_mut(&key) else { return Ok(()) };
        if !run.is_live() {
            return Ok(());
        }
        let happening = run.tick(self.now, total);
        let step = run.saved;
        match happening {
            Happening::Commit(_) => self.commit(key.0, step)?,
            Happening::All(outcome) => {
                let good = !matches!(outcome, crate::core::Outcome::Failed(_));
                if good {
                    self.commit(key.0, step)?;
                }
                self.end_all(key, &outcome);
            }
            Happening::Nothing => {}
        }
        self.due(self.now + STEP_MS, Due::Train(key));
        self.check()
    }

    fn commit(&mut self, job: JobId, step: u64) -> Result<(), String> {
        self.oracle.as_mut().map_or(Ok(()), |oracle| oracle.commits(job, step))
    }
}

/// Machines.
impl World {
    fn delay(&mut self) -> u64 {
        if self.rng.chance(5) { self.rng.within(50, 600) } else { self.rng.within(1, 20) }
    }

    fn send_up(&mut self, index: usize, event: Event) {
        let delay = self.delay();
        let worker = &mut self.workers[index];
        let Some(session) = worker.session else { return };
        worker.last_up = worker.last_up.max(self.now + delay);
        let at = worker.last_up;
        let sent = self.now;
        self.due(at, Due::ToScheduler(index, session, sent, event));
    }

    fn send_down(&mut self, index: usize, message: ToWorker) {
        let delay = self.delay();
        let worker = &mut self.workers[index];
        let Some(session) = worker.session else { return };
        worker.last_down = worker.last_down.max(self.now + delay);
        let at = worker.last_down;
        self.due(at, Due::ToWorker(index, session, message));
    }

    fn beat(&mut self, index: usize) {
        self.due(self.now + HEARTBEAT_MS, Due::Beat(index));
        if self.workers[index].away_until > self.now {
            return;
        }
        // It says how attempts ended until it is told to forget them.
        let ended = self.workers[index].journal.iter().filter(|(_, outcome)| outcome.is_some());
        let ended: Vec<RunKey> = ended.map(|(key, _)| *key).collect();
        for key in ended {
            self.tell_end(key, index);
        }
        let name = self.workers[index].name.clone();
        if let Some(session) = self.workers[index].session {
            let progress = self
                .runs
                .iter()
                .filter(|(_, run)| run.parts.get(&name) == Some(&Part::Live))
                .map(|((job, attempt), run)| (*job, *attempt, run.progress(index as u64)))
                .collect();
            return self.send_up(index, Event::Heartbeat { node: name, session, progress });
        }
        if !self.scheduler_up {
            return;
        }
        self.sessions += 1;
        let session = self.sessions;
        let worker = &mut self.workers[index];
        worker.session = Some(session);
        (worker.last_up, worker.last_down) = (self.now, self.now);
        let registration = Registration {
            node: name,
            session,
            boot_id: worker.boot.to_string(),
            instance: crate::core::Instance::default(),
            capacity: worker.capacity.clone(),
            attempts: worker.report(),
        };
        self.send_up(index, Event::Registered(registration));
    }

    fn disconnect(&mut self, index: usize) {
        if let Some(session) = self.workers[index].session.take() {
            // Sometimes the scheduler hears of it, sometimes only silence tells.
            if self.rng.chance(60) {
                let at = self.now + self.delay();
                self.due(at, Due::Gone(index, session));
            }
        }
    }

    fn receive(&mut self, index: usize, message: ToWorker) {
        match message {
            ToWorker::Start { job, attempt, nodes, spec } => {
                self.start(index, (job, attempt), nodes.len(), &spec);
            }
            ToWorker::Suspend(key) => {
                if let Some(run) = self.runs.get_mut(&key) {
                    run.suspend_asked = true;
                }
            }
            ToWorker::Kill(key) => self.kill(index, key),
            ToWorker::Forget(key) => {
                if self.workers[index].journal.get(&key).is_some_and(Option::is_some) {
                    self.workers[index].journal.remove(&key);
                }
            }
            ToWorker::Reject => {
                self.workers[index].session = None;
            }
            ToWorker::Renewed { sent } => {
                let ends = sent + people::policy().lease_ms;
                let worker = &mut self.workers[index];
                if ends > worker.lease_ends {
                    worker.lease_ends = ends;
                    self.due(ends, Due::Lease(index));
                }
            }
        }
    }

    fn start(&mut self, index: usize, key: RunKey, size: usize, spec: &JobSpec) {
        let worker = &mut self.workers[index];
        let name = worker.name.clone();
        let session = worker.session.unwrap_or(0);
        if !worker.accepts(key) {
            return;
        }
        worker.newest.insert(key.0, key.1);
        self.specs.entry(key.0).or_insert_with(|| spec.clone());
        let (fails, load, save) =
            (self.faults && self.rng.chance(2), self.rng.within(50, 800), self.rng.within(50, 700));
        if fails {
            let class = *self.rng.pick(&[FailureClass::NodeUnfit, FailureClass::Unsuited]);
            let outcome = failed(class, "memory is taken");
            self.workers[index].journal.insert(key, Some(outcome.clone()));
            let (job, attempt) = key;
            let event = Event::AttemptEnded { node: name, session, job, attempt, outcome };
            return self.send_up(index, event);
        }
        self.workers[index].journal.insert(key, None);
        let committed = self.oracle.as_ref().and_then(|o| o.committed.get(&key.0)).copied();
        let from = committed.unwrap_or(0);
        let is_new = !self.runs.contains_key(&key);
        let run = self.runs.entry(key).or_insert_with(|| Run {
            parts: BTreeMap::new(),
            size,
            step: from,
            saved: from,
            save_ms: save,
            suspend_asked: false,
            suspends_at: None,
            hangs: false,
            breaks_at: None,
        });
        run.parts.insert(name, Part::Loading);
        if is_new {
            self.due(self.now + STEP_MS, Due::Train(key));
        }
        self.due(self.now + load, Due::Loaded(key, index));
    }

    fn loaded(&mut self, key: RunKey, index: usize) {
        let node = self.workers[index].name.clone();
        let Some(part) = self.runs.get_mut(&key).and_then(|run| run.parts.get_mut(&node)) else {
            return;
        };
        if *part == Part::Loading {
            *part = Part::Live;
            let (job, attempt) = key;
            let session = self.workers[index].session.unwrap_or(0);
            self.send_up(index, Event::AttemptStarted { node, session, job, attempt });
        }
    }

    /// A part of a run is over on a node; the others notice after a while.
    fn end_part(
        &mut self,
        key: RunKey,
        index: usize,
        outcome: crate::core::Outcome,
        tell_after: u64,
    ) {
        let node = self.workers[index].name.clone();
        let Some(run) = self.runs.get_mut(&key) else { return };
        match run.parts.get_mut(&node) {
            Some(part) if !matches!(part, Part::Over(_)) => *part = Part::Over(outcome.clone()),
            _ => return,
        }
        if matches!(outcome, crate::core::Outcome::Failed(_) | crate::core::Outcome::Killed) {
            let at = self.now + self.rng.within(100, 900);
            if let Some(run) = self.runs.get_mut(&key) {
                run.breaks_at.get_or_insert(at);
            }
        }
        self.workers[index].journal.insert(key, Some(outcome));
        self.due(self.now + tell_after, Due::Ended(key, index));
    }

    fn end_all(&mut self, key: RunKey, outcome: &crate::core::Outcome) {
        for index in 0..self.workers.len() {
            let tell_after = self.rng.within(1, 100);
            self.end_part(key, index, outcome.clone(), tell_after);
        }
    }

    fn tell_end(&mut self, (job, attempt): RunKey, index: usize) {
        let worker = &self.workers[index];
        let Some(Some(outcome)) = worker.journal.get(&(job, attempt)) else { return };
        let (node, outcome) = (worker.name.clone(), outcome.clone());
        let session = worker.session.unwrap_or(0);
        if worker.away_until <= self.now {
            self.send_up(index, Event::AttemptEnded { node, session, job, attempt, outcome });
        }
    }

    fn kill(&mut self, index: usize, key: RunKey) {
        let worker = &mut self.workers[index];
        if worker.journal.get(&key) == Some(&None) {
            let tell_after = self.rng.within(1, 50);
            return self.end_part(key, index, crate::core::Outcome::Killed, tell_after);
        }
        // Unknown or over: say (again) how it ended.
        let newest = worker.newest.entry(key.0).or_insert(Attempt(0));
        *newest = (*newest).max(key.1);
        worker.journal.entry(key).or_insert(Some(crate::core::Outcome::Killed));
        self.due(self.now + 1, Due::Ended(key, index));
    }

    /// The shims' deadline, unless it was extended.
    fn lease(&mut self, index: usize) {
        if self.workers[index].lease_ends > self.now {
            return;
        }
        let live: Vec<RunKey> = self.workers[index]
            .journal
            .iter()
            .filter(|(_, outcome)| outcome.is_none())
            .map(|(key, _)| *key)
            .collect();
        for key in live {
            let outcome = failed(FailureClass::Infrastructure, "the lease has ended");
            self.end_part(key, index, outcome, 1);
        }
    }

    fn befall(&mut self, happens: Happens) {
        match happens {
            Happens::Ask(_) => {}
            Happens::Partition(index, ms) | Happens::DaemonDies(index, ms) => {
                self.workers[index].away_until = self.now + ms;
                self.disconnect(index);
            }
            Happens::Leaves(index, ms) => {
                let node = self.workers[index].name.clone();
                if let Some(session) = self.workers[index].session {
                    self.send_up(index, Event::Left { node, session });
                }
                // What it says last arrives.
                let gone = self.workers[index].last_up + 1;
                self.due(gone, Due::Happens(Happens::DaemonDies(index, ms)));
            }
            Happens::Break(index) => self.disconnect(index),
            Happens::Reboots(index, ms) => {
                self.workers[index].away_until = self.now + ms;
                self.workers[index].boot += 1;
                self.disconnect(index);
                let live: Vec<RunKey> = self.workers[index].journal.keys().copied().collect();
                for key in live {
                    let outcome = failed(FailureClass::NodeLost, "the node has booted");
                    self.end_part(key, index, outcome, ms);
                }
                if self.rng.chance(50) {
                    // It may come back with an empty disk.
                    self.workers[index].journal.clear();
                }
            }
            Happens::RankFails(draw) => {
                let classes = [
                    FailureClass::Infrastructure,
                    FailureClass::Killed,
                    FailureClass::Infrastructure,
                    FailureClass::Program,
                ];
                let class = classes[(draw >> 32) as usize % classes.len()];
                if let Some((key, index)) = self.some_live(draw) {
                    self.end_part(key, index, failed(class, "a rank ended"), 5);
                }
            }
            Happens::Hangs(draw) => {
                if let Some((key, _)) = self.some_live(draw)
                    && self.specs.get(&key.0).is_some_and(|spec| spec.hang_timeout_ms.is_some())
                    && let Some(run) = self.runs.get_mut(&key)
                {
                    run.hangs = true;
                }
            }
            Happens::SchedulerDies(ms) => {
                if std::mem::take(&mut self.scheduler_up) {
                    self.outcome.restarts += 1;
                    for worker in &mut self.workers {
                        worker.session = None;
                    }
                    self.due(self.now + ms, Due::SchedulerBack);
                }
            }
        }
    }

    fn some_live(&self, draw: u64) -> Option<(RunKey, usize)> {
        let live: Vec<(RunKey, usize)> = (0..self.workers.len())
            .flat_map(|index| {
                let journal = self.workers[index].journal.iter();
                journal.filter(|(_, o)| o.is_none()).map(move |(key, _)| (*key, index))
            })
            .collect();
        (!live.is_empty()).then(|| live[draw as usize % live.len()])
    }
}
