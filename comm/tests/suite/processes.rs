//! Faults at process level: ranks are processes, killed, stopped and starved.
//!
//! The test binary starts itself again with `LAMPYRIS_ROLE` set; the role runs instead of the tests (`role_of_child`).

use lampyris_comm::emulation::Hosts;
use lampyris_comm::{
    Attempt, Communicator, Generation, Membership, Node, Options, Rank, Secret, Server,
};
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A rank in its own process.
struct RankProcess {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl RankProcess {
    /// Its next line that starts with a word of ours; the test harness's own lines are skipped.
    fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).expect("a pipe");
            assert!(read > 0, "the rank ended without a word");
            if let Some(ours) = line.trim_end().strip_prefix("@ ") {
                return ours.to_string();
            }
        }
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("our child");
    }

    fn wait(mut self) {
        let status = self.child.wait().expect("our child");
        assert!(status.success(), "{status}");
    }
}

impl Drop for RankProcess {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            self.signal(rustix::process::Signal::KILL);
            self.child.wait().expect("our child");
        }
    }
}

struct Job {
    server: Server,
    file: PathBuf,
}

impl Job {
    fn new() -> Self {
        Self::with_patience(Duration::from_secs(30))
    }

    fn with_patience(patience: Duration) -> Self {
        let secret = Secret::random().expect("randomness");
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("lampyris-{}-{nth}", std::process::id()));
        secret.write_file(&file).expect("a new file");
        let any = "127.0.0.1:0".parse().expect("an address");
        let server = Server::start(any, secret, Attempt(1), patience).expect("server");
        Self { server, file }
    }

    fn start(&self, role: &str, rank: usize, ranks: usize, per_node: usize) -> RankProcess {
        let mut command = Command::new(std::env::current_exe().expect("this test"));
        command.env("LAMPYRIS_RENDEZVOUS", self.server.address().to_string());
        self.spawn(command, role, (rank, ranks, per_node))
    }

    /// A rank on an emulated host.
    fn start_on(&self, hosts: &Hosts, role: &str, rank: usize, ranks: usize) -> RankProcess {
        let mut command = hosts.command(rank, &std::env::current_exe().expect("this test"));
        if rank == 0 {
            command.env("LAMPYRIS_SERVE", "yes");
        }
        let rendezvous = format!("{}:29400", hosts.address(0));
        command.env("LAMPYRIS_RENDEZVOUS", rendezvous);
        self.spawn(command, role, (rank, ranks, 1))
    }

    fn spawn(
        &self,
        mut command: Command,
        role: &str,
        (rank, ranks, per_node): (usize, usize, usize),
    ) -> RankProcess {
        let mut child = command
            .args(["--exact", "processes::role_of_child", "--nocapture", "--include-ignored"])
            .env("LAMPYRIS_ROLE", role)
            .env("LAMPYRIS_RANK", format!("{rank} {ranks} {per_node}"))
            .env("LAMPYRIS_SECRET", &self.file)
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test starts again");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        RankProcess { child, output }
    }

    fn start_all(&self, role: &str, ranks: usize, per_node: usize) -> Vec<RankProcess> {
        (0..ranks).map(|rank| self.start(role, rank, ranks, per_node)).collect()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        std::fs::remove_file(&self.file).expect("made in new");
    }
}

fn say(words: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "@ {words}").expect("the parent listens");
    out.flush().expect("the parent listens");
}

/// What a child process does. A test only so that the harness finds it; without a role it is none.
#[test]
#[ignore = "the other side of the tests in this file"]
fn role_of_child() {
    let Ok(role) = std::env::var("LAMPYRIS_ROLE") else { return };
    if role == "generations" {
        return crate::faults::hundred_generations();
    }
    let open_before = crate::faults::open_files();
    let var = |name| std::env::var(name).expect("set by the parent");
    let numbers: Vec<usize> =
        var("LAMPYRIS_RANK").split(' ').map(|n| n.parse().expect("a number")).collect();
    let me = Membership {
        secret: Secret::from_file(var("LAMPYRIS_SECRET").as_ref()).expect("the secret"),
        rendezvous: var("LAMPYRIS_RENDEZVOUS").parse().expect("an address"),
        rank: Rank(numbers[0] as u32),
        ranks: numbers[1],
        node: Node((numbers[0] / numbers[2]) as u32),
        attempt: Attempt(1),
        generation: Generation(0),
        address: None,
    };
    // Emulated hosts: the rendezvous is on the first of them.
    let served = std::env::var("LAMPYRIS_SERVE").is_ok().then(|| {
        let patience = Duration::from_secs(30);
        Server::start(me.rendezvous, me.secret.clone(), Attempt(1), patience).expect("server")
    });
    let options = Options {
        connect_timeout: Duration::from_secs(30),
        operation_timeout: Duration::from_secs(60),
        peer_timeout: Duration::from_secs(2),
        ..Options::default()
    };
    let comm = match Communicator::connect(&me, options) {
        Ok(comm) => comm,
        Err(error) => return say(&format!("failed {error}")),
    };
    say("formed");
    child_main(&role, &comm);
    drop((comm, served));
    crate::faults::nothing_is_left(&open_before);
}

fn child_main(role: &str, comm: &Communicator) {
    let world = comm.world();
    // 16 MiB: a SIGKILL some milliseconds after the start of one falls into its middle.
    let mut buffer = vec![1.0f32; 4 << 20];
    let repeat = |operation: &mut dyn FnMut() -> lampyris_comm::Result<()>| {
        operation().expect("the first one works");
        say("running");
        loop {
            if let Err(error) = operation() {
                break error;
            }
        }
    };
    let error = match role {
        "reduce" => repeat(&mut || world.all_reduce(&mut buffer)),
        "broadcast" => repeat(&mut || world.broadcast(&mut buffer, 1)),
        "idle" => {
            world.barrier().expect("works");
            say("running");
            loop {
                if let Err(error) = comm.check() {
                    break error;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        "short" => {
            let world = world.with_timeout(Duration::from_secs(3));
            repeat(&mut || world.all_reduce(&mut buffer[..1000]))
        }
        steps if steps.starts_with("steps ") => {
            // Operations for so many seconds, then a good end.
            let seconds = steps["steps ".len()..].parse().expect("a number");
            let until = Instant::now() + Duration::from_secs(seconds);
            let mut last = false;
            say("running");
            while !last {
                world.all_reduce(&mut buffer[..100_000]).expect("no false alarm");
                let mut vote = [i64::from(Instant::now() > until)];
                world.all_reduce(&mut vote).expect("no false alarm");
                last = vote[0] > 0;
            }
            return say("finished");
        }
        other => panic!("no role {other}"),
    };
    say(&format!("error {error}"));
}

/// Held by every test that looks at the clock: they run one after the other, so that none is measured under the load that
/// another one makes.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills rank 2 of 4 and expects every survivor to name it within a second.
fn kill(role: &str, per_node: usize) {
    let job = Job::new();
    let mut ranks = job.start_all(role, 4, per_node);
    for rank in &mut ranks {
        assert_eq!(rank.line(), "formed");
        assert_eq!(rank.line(), "running");
    }
    let victim = ranks.remove(2);
    victim.signal(rustix::process::Signal::KILL);
    let killed = Instant::now();
    for rank in &mut ranks {
        let words = rank.line();
        let took = killed.elapsed();
        assert!(words.starts_with("error rank 2 died"), "{role}, {per_node}: {words}");
        assert!(took < Duration::from_secs(1), "{role}, {per_node}: {took:?}");
    }
    // They look themselves that they hold nothing any more.
    ranks.into_iter().for_each(RankProcess::wait);
}

#[test]
fn a_killed_rank_is_named_by_all_within_a_second() {
    let _alone = alone();
    for per_node in [4, 2, 1] {
        for role in ["reduce", "broadcast", "idle"] {
            kill(role, per_node);
        }
    }
}

#[test]
fn a_rank_killed_while_connecting_is_missed_by_name() {
    let _alone = alone();
    let job = Job::with_patience(Duration::from_secs(3));
    let mut ranks: Vec<RankProcess> = (0..3).map(|r| job.start("idle", r, 4, 4)).collect();
    // The fourth comes as far as the rendezvous and dies; the others are told at the deadline.
    let fourth = job.start("idle", 3, 5, 4);
    fourth.signal(rustix::process::Signal::KILL);
    let told = Instant::now();
    for rank in &mut ranks {
        let words = rank.line();
        assert!(words.starts_with("failed"), "{words}");
        assert!(words.contains("missing ranks [Rank(3)]"), "{words}");
    }
    assert!(told.elapsed() < Duration::from_secs(20));
}

#[test]
fn a_rank_killed_at_any_moment_of_connecting_is_named() {
    let _alone = alone();
    for delay in (0..60).step_by(6) {
        let job = Job::with_patience(Duration::from_secs(2));
        let mut ranks = job.start_all("idle", 4, 2);
        std::thread::sleep(Duration::from_millis(delay));
        let victim = ranks.remove(2);
        victim.signal(rustix::process::Signal::KILL);
        let killed = Instant::now();
        // All are read at once: one that waits out its patience must not make another's answer look late.
        let answer = |rank: &mut RankProcess| loop {
            let words = rank.line();
            if words != "formed" && words != "running" {
                break (words, killed.elapsed());
            }
        };
        let answers: Vec<(String, Duration)> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                ranks.iter_mut().map(|rank| scope.spawn(move || answer(rank))).collect();
            threads.into_iter().map(|thread| thread.join().expect("read")).collect()
        });
        for (words, took) in answers {
            // Killed before it came to the rendezvous, it is missing; nobody can tell that from being late.
            let died = words.contains("rank 2 died");
            let missing = words.contains("missing ranks") && words.contains("Rank(2)");
            assert!(died || missing, "{delay} ms: {words}");
            assert!(!died || took < Duration::from_secs(1), "{delay} ms, {took:?}: {words}");
        }
    }
}

#[test]
fn a_stopped_rank_is_named_at_the_deadline_and_a_short_stop_is_forgiven() {
    use rustix::process::Signal;
    let _alone = alone();
    for per_node in [3, 1] {
        let job = Job::new();
        let mut ranks = job.start_all("short", 3, per_node);
        for rank in &mut ranks {
            assert_eq!(rank.line(), "formed");
            assert_eq!(rank.line(), "running");
        }
        // Shorter than the operation's deadline of 3 s: nothing happens.
        ranks[1].signal(Signal::STOP);
        std::thread::sleep(Duration::from_millis(1500));
        ranks[1].signal(Signal::CONT);
        std::thread::sleep(Duration::from_millis(300));
        // Longer: an error at the deadline, which names rank 1 and not the ranks that wait with us.
        ranks[1].signal(Signal::STOP);
        let stopped = Instant::now();
        for rank in [0, 2] {
            let words = ranks[rank].line();
            let took = stopped.elapsed();
            assert!(words.contains("did not finish within 3000 ms: rank 1 "), "{words}");
            assert!(!words.contains("rank 0 ") && !words.contains("rank 2 "), "{words}");
            let range = Duration::from_millis(2900)..Duration::from_millis(3700);
            assert!(range.contains(&took), "{per_node} per node: {took:?}");
        }
        ranks[1].signal(Signal::CONT);
        let words = ranks[1].line();
        assert!(words.starts_with("error"), "{words}");
    }
}

#[test]
fn a_hundred_generations_leave_nothing_behind() {
    let child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "processes::role_of_child", "--nocapture", "--include-ignored"])
        .env("LAMPYRIS_ROLE", "generations")
        .output()
        .expect("this test starts again");
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
}

#[test]
fn eight_ranks_on_loaded_cores_raise_no_false_alarm_for_a_minute() {
    let _alone = alone();
    let job = Job::new();
    let mut ranks = job.start_all("steps 60", 8, 2);
    let stop = AtomicBool::new(false);
    let spin = || {
        while !stop.load(Ordering::Relaxed) {
            std::hint::spin_loop();
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(spin);
        }
        for rank in &mut ranks {
            assert_eq!(rank.line(), "formed");
            assert_eq!(rank.line(), "running");
        }
        let last: Vec<String> = ranks.iter_mut().map(RankProcess::line).collect();
        stop.store(true, Ordering::Relaxed);
        assert!(last.iter().all(|words| words == "finished"), "{last:?}");
    });
    ranks.into_iter().for_each(RankProcess::wait);
}

#[test]
fn a_cut_link_is_a_vanished_host_after_the_peer_timeout() {
    if let Err(why) = Hosts::available() {
        // Never silently where it counts.
        assert!(std::env::var_os("CI").is_none(), "this test must run in CI: {why}");
        println!("skipped: {why}");
        return;
    }
    let _alone = alone();
    for role in ["reduce", "idle"] {
        let hosts = Hosts::new(3, None).expect("namespaces");
        let job = Job::new();
        let mut ranks: Vec<RankProcess> =
            (0..3).map(|rank| job.start_on(&hosts, role, rank, 3)).collect();
        for rank in &mut ranks {
            assert_eq!(rank.line(), "formed");
            assert_eq!(rank.line(), "running");
        }
        hosts.set_link(2, false).expect("cut");
        let cut = Instant::now();
        for rank in &mut ranks[..2] {
            let words = rank.line();
            let took = cut.elapsed();
            assert!(words.starts_with("error rank 2 vanished"), "{role}: {words}");
            // peer_timeout is 2 s; 20 % more, and a heartbeat that was on its way.
            let range = Duration::from_millis(1950)..Duration::from_millis(2400);
            assert!(range.contains(&took), "{role}: {took:?}");
        }
        let words = ranks[2].line();
        assert!(words.contains("vanished"), "{role}: {words}");
    }
}
