//! Heartbeats over real gRPC streams, and what an idle daemon costs. The daemon runs in a process of its own.

use super::print_row;
use anyhow::{Context, Result, ensure};
use lampyris_proto::v1;
use lampyris_proto::v1::scheduler_message::Body as Down;
use lampyris_proto::v1::worker_message::Body as Up;
use lampyris_proto::v1::worker_service_client::WorkerServiceClient;
use lampyris_scheduler::service::{Address, Options};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

const CONNECTIONS: usize = 500;
/// 500 connections at this pace are 2,000 heartbeats per second.
const PACE: Duration = Duration::from_millis(250);
/// Clock ticks per second in `/proc/PID/stat`.
const TICKS: f64 = 100.0;

/// Runs the daemon until its standard input closes.
pub(super) fn serve(state_dir: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listen = Address::Tcp(([127, 0, 0, 1], 0).into());
        let service = Options::new(state_dir.into(), listen).build()?;
        println!("{}", service.handle().address());
        let (closed, input) = tokio::sync::oneshot::channel::<()>();
        std::thread::spawn(move || {
            std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
            drop(closed);
        });
        service
            .run(async {
                input.await.ok();
            })
            .await?;
        Ok(())
    })
}

struct Daemon {
    child: Child,
    address: String,
    _home: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Result<Daemon> {
        let home = tempfile::tempdir()?;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .arg(home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut address = String::new();
        BufReader::new(child.stdout.take().context("piped")?).read_line(&mut address)?;
        Ok(Daemon { child, address: address.trim().to_owned(), _home: home })
    }

    fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.child.id());
        std::fs::read_to_string(Path::new(&path)).context(path)
    }

    fn cpu_seconds(&self) -> Result<f64> {
        let stat = self.proc("stat")?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>()? + fields[12].parse::<f64>()?;
        Ok(ticks / TICKS)
    }

    fn resident_mib(&self) -> Result<f64> {
        let status = self.proc("status")?;
        let line = status.lines().find(|line| line.starts_with("VmRSS")).context("VmRSS")?;
        Ok(line.split_whitespace().nth(1).context("a number")?.parse::<f64>()? / 1024.0)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().ok();
    }
}

pub(super) fn idle(seconds: u64) -> Result<()> {
    let daemon = Daemon::start()?;
    std::thread::sleep(Duration::from_secs(2));
    let before = daemon.cpu_seconds()?;
    std::thread::sleep(Duration::from_secs(seconds));
    let percent = (daemon.cpu_seconds()? - before) / seconds as f64 * 100.0;
    println!(
        "idle: {:.1} MiB resident, {percent:.2} % of a core over {seconds} s",
        daemon.resident_mib()?
    );
    Ok(())
}

pub(super) fn heartbeats(seconds: u64) -> Result<()> {
    let daemon = Daemon::start()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let address = daemon.address.clone();
    let (before, times) = runtime.block_on(async {
        let mut joined = Vec::new();
        for index in 0..CONNECTIONS {
            joined.push(join(&address, index).await?);
        }
        let before = daemon.cpu_seconds()?;
        let until = Instant::now() + Duration::from_secs(seconds);
        let beats = joined.into_iter().enumerate();
        let beats: Vec<_> =
            beats.map(|(index, worker)| tokio::spawn(beat(worker, index, until))).collect();
        let mut times = Vec::new();
        for beat in beats {
            times.extend(beat.await??);
        }
        anyhow::Ok((before, times))
    })?;
    let cpu = daemon.cpu_seconds()? - before;
    let rate = times.len() as f64 / seconds as f64;
    println!(
        "{CONNECTIONS} connections, {rate:.0} heartbeats/s for {seconds} s: {cpu:.2} s of processor time = \
         {:.3} cores, {:.1} MiB resident",
        cpu / seconds as f64,
        daemon.resident_mib()?
    );
    println!("{:<24} {:>7} {:>12} {:>12} {:>12}", "", "count", "median us", "p99 us", "max us");
    print_row("heartbeat to answer", times);
    Ok(())
}

type Joined = (mpsc::Sender<v1::WorkerMessage>, tonic::Streaming<v1::SchedulerMessage>);

async fn join(address: &str, index: usize) -> Result<Joined> {
    let (up, messages) = mpsc::channel(4);
    let capacity = v1::Capacity { group: "main".into(), devices: 8, ..Default::default() };
    let register = v1::Register {
        node: format!("node-{index}"),
        boot_id: "b".into(),
        capacity: Some(capacity),
        ..Default::default()
    };
    up.send(v1::WorkerMessage { body: Some(Up::Register(register)) }).await?;
    let mut client = WorkerServiceClient::connect(address.to_owned()).await?;
    let down = client.join(ReceiverStream::new(messages)).await?.into_inner();
    Ok((up, down))
}

/// Sends heartbeats with one attempt each, at a steady pace; microseconds until each answer.
async fn beat((up, mut down): Joined, index: usize, until: Instant) -> Result<Vec<f64>> {
    let first = PACE.mul_f64(index as f64 / CONNECTIONS as f64);
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + first, PACE);
    let mut times = Vec::new();
    for sequence in 1.. {
        ticks.tick().await;
        if Instant::now() >= until {
            break;
        }
        let ranks =
            (0..8).map(|rank| v1::RankProgress { rank, step: sequence, ..Default::default() });
        let progress =
            v1::Progress { step: sequence, ranks: ranks.collect(), ..Default::default() };
        let attempts = vec![v1::AttemptProgress { job: 1, attempt: 1, progress: Some(progress) }];
        let sent = Instant::now();
        let heartbeat = v1::Heartbeat { sequence, attempts };
        up.send(v1::WorkerMessage { body: Some(Up::Heartbeat(heartbeat)) }).await?;
        loop {
            let message = down.message().await?.context("the stream has ended")?;
            if let Some(Down::HeartbeatAck(ack)) = message.body {
                ensure!(ack.sequence == sequence, "an answer out of order");
                break;
            }
        }
        times.push(sent.elapsed().as_secs_f64() * 1e6);
    }
    Ok(times)
}
