//! Jobs that are not for every node, workers that leave, drains of people and of hosts.

use crate::core::{
    Action, Capacity, Command, Event, Failure, FailureClass, JobSpec, JobState, NodeName,
    NodeState, Outcome, Place, Policy, Priority, Reason, Registration, ReportedAttempt, Scheduler,
    Snapshot, Time,
};
use lampyris_proto::{Attempt, JobId};

/// A cluster of `n0`, `n1`, ... of one device each, whose clock a story moves.
struct Story {
    core: Scheduler,
    now: u64,
    sessions: u64,
}

impl Story {
    fn new(nodes: usize) -> Story {
        let mut story = Story { core: Scheduler::new(policy()), now: 0, sessions: 0 };
        (0..nodes).for_each(|index| story.register(index));
        story
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        self.now += 1;
        self.core.step(Time(self.now), event)
    }

    fn register(&mut self, index: usize) {
        self.sessions += 1;
        let place = Place { zone: String::new(), switch: String::new() };
        let capacity = Capacity { group: "default".into(), devices: 1, shared: false, place };
        self.step(Event::Registered(Registration {
            node: name(index),
            session: self.sessions,
            boot_id: "boot".into(),
            instance: crate::core::Instance::default(),
            capacity,
            attempts: Vec::<ReportedAttempt>::new(),
        }));
    }

    fn session(&self, index: usize) -> u64 {
        self.core.node(&name(index)).unwrap().session.unwrap()
    }

    fn command(&mut self, command: Command) {
        self.step(Event::Command { ticket: 1, command });
    }

    fn submit(&mut self, max_retries: u32) -> JobId {
        let id = JobId(self.core.next_job());
        let spec = JobSpec {
            name: "train".into(),
            user: "ann".into(),
            group: "default".into(),
            priority: Priority::Normal,
            nodes: vec![1],
            devices_per_node: None,
            max_runtime_ms: None,
            max_retries,
            hang_timeout_ms: None,
            restart_on_hang: true,
        };
        self.command(Command::Submit { request_id: format!("r{id}"), spec });
        id
    }

    /// The node on which a job is to start, and which attempt.
    fn placed(&self, job: JobId) -> Option<(usize, Attempt)> {
        let job = self.core.job(job).unwrap();
        let node = self.core.members(job).first()?.0.trim_start_matches('n').parse().unwrap();
        Some((node, job.attempt))
    }

    /// Its node finds that it is not the one for the job.
    fn unsuited(&mut self, job: JobId) -> usize {
        let (index, attempt) = self.placed(job).expect("it is to start");
        let class = FailureClass::Unsuited;
        let message = "/runs/a is no run directory on this node".into();
        let failure = Failure { class, exit_code: None, rank: None, message };
        let (node, session) = (name(index), self.session(index));
        let outcome = Outcome::Failed(failure);
        self.step(Event::AttemptEnded { node, session, job, attempt, outcome });
        index
    }

    fn state(&self, job: JobId) -> JobState {
        self.core.job(job).unwrap().state
    }

    fn restarted(&self) -> Scheduler {
        let text = |snapshot: &Snapshot| {
            let nodes = serde_json::to_string(&snapshot.nodes).unwrap();
            (nodes, serde_json::to_string(&snapshot.jobs).unwrap())
        };
        let mut snapshot = self.core.snapshot();
        let (nodes, jobs) = text(&snapshot);
        snapshot.nodes = serde_json::from_str(&nodes).unwrap();
        snapshot.jobs = serde_json::from_str(&jobs).unwrap();
        Scheduler::restore(policy(), Time(self.now), snapshot)
    }
}

fn name(index: usize) -> NodeName {
    NodeName(format!("n{index}"))
}

fn policy() -> Policy {
    Policy { backoff_ms: 50, lease_ms: 3_000, ..Policy::default() }
}

#[test]
fn a_job_that_no_node_can_start_fails_alone() {
    let mut story = Story::new(4);
    let job = story.submit(0);
    let tried: Vec<usize> = (0..3).map(|_| story.unsuited(job)).collect();
    assert_eq!(tried, [0, 1, 2], "three different nodes");
    assert_eq!(story.state(job), JobState::Failed);
    let why = story.core.job(job).unwrap().reason.to_string();
    assert!(why.contains("3 nodes are not the ones for it"), "{why}");
    assert!(why.contains("/runs/a is no run directory"), "{why}");
    let now = Time(story.now);
    assert!(story.core.nodes().iter().all(|node| node.is_in_service(now)), "the nodes are well");
    let other = story.submit(0);
    assert_eq!(story.placed(other).unwrap().0, 0);
}

#[test]
fn a_job_waits_for_a_node_that_is_for_it_and_others_pass() {
    let mut story = Story::new(2);
    let job = story.submit(1);
    assert_eq!(story.unsuited(job), 0);
    let (index, attempt) = story.placed(job).unwrap();
    assert_eq!((index, attempt), (1, Attempt(2)));
    // It has not used up its only retry.
    assert_eq!(story.core.job(job).unwrap().retries, 0);
    let other = story.submit(0);
    assert_eq!(story.placed(other).unwrap().0, 0);
}

#[test]
fn where_there_is_no_other_node_it_is_tried_again_as_often_as_it_may() {
    let mut story = Story::new(1);
    let job = story.submit(1);
    story.unsuited(job);
    assert_eq!(story.state(job), JobState::Queued);
    assert!(matches!(story.core.job(job).unwrap().reason, Reason::BacksOff { .. }));
    story.now += 1_000;
    story.step(Event::Tick);
    story.unsuited(job);
    assert_eq!(story.state(job), JobState::Failed);
}

#[test]
fn an_unfit_node_is_named_with_its_lack_and_its_time() {
    let mut story = Story::new(1);
    let job = story.submit(5);
    let (index, attempt) = story.placed(job).unwrap();
    let message = "a core copies 1 MiB/s of memory: broken or throttled".to_string();
    let class = FailureClass::NodeUnfit;
    let failure = Failure { class, exit_code: None, rank: None, message };
    let (node, session) = (name(index), story.session(index));
    let outcome = Outcome::Failed(failure);
    story.step(Event::AttemptEnded { node, session, job, attempt, outcome });
    story.now += 61_000;
    story.step(Event::Tick);
    let why = story.core.explain(story.core.job(job).unwrap()).to_string();
    assert!(why.contains("n0 is unfit for 8 min: a core copies 1 MiB/s"), "{why}");
}

#[test]
fn a_worker_that_leaves_an_empty_node_is_not_waited_for() {
    let mut story = Story::new(2);
    let session = story.session(1);
    story.step(Event::Left { node: name(1), session });
    let node = story.core.node(&name(1)).unwrap();
    assert_eq!((node.state, node.left), (NodeState::Lost, true));
    let mut restarted = story.restarted();
    assert!(restarted.is_recovering(), "n0 may still run something");
    std::mem::swap(&mut story.core, &mut restarted);
    story.register(0);
    assert!(!story.core.is_recovering(), "n1 has said that it runs nothing");
    story.register(1);
    assert!(!story.core.node(&name(1)).unwrap().left);
}

#[test]
fn a_worker_that_leaves_a_job_behind_keeps_its_lease() {
    let mut story = Story::new(1);
    let job = story.submit(3);
    let session = story.session(0);
    story.step(Event::Left { node: name(0), session });
    assert_eq!(story.core.node(&name(0)).unwrap().state, NodeState::Silent);
    assert_eq!(story.state(job), JobState::Starting);
}

#[test]
fn a_host_ends_its_own_drains_and_no_others() {
    let drain = |node, by_host| Command::Drain { node: name(node), suspend_jobs: true, by_host };
    let resume = |node| Command::ResumeNode { node: name(node), only_host: true };
    let mut story = Story::new(3);
    story.command(drain(0, true));
    story.command(drain(1, false));
    // A person's drain stays a person's, whoever comes second.
    story.command(drain(1, true));
    story.command(drain(2, true));
    story.command(drain(2, false));
    story.core = story.restarted();
    (0..3).for_each(|node| story.command(resume(node)));
    let draining: Vec<bool> = story.core.nodes().iter().map(|node| node.draining).collect();
    assert_eq!(draining, [false, true, true]);
    story.command(Command::ResumeNode { node: name(1), only_host: false });
    assert!(!story.core.node(&name(1)).unwrap().draining);
}
