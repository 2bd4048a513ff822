//! Several hosts on one machine, for tests and benches: network namespaces on one bridge, links shaped by TBF.
//!
//! Each host is a namespace with one `eth0`; the bridge lives in a namespace of its own, so the machine's own network
//! is untouched and everything disappears with the namespaces. Needs root, `ip` and `tc`. The kernel of the development
//! machine has no netem: bandwidth can be shaped and links cut, delay cannot be added here (the fake transport does).

use crate::error::{Error, Result};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// Hosts of one emulated network. Removed when dropped.
#[derive(Debug)]
pub struct Hosts {
    prefix: String,
    hosts: usize,
}

/// How links are shaped, in both directions.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Bits per second.
    pub rate_bits: u64,
    /// Bytes that may pass at once.
    pub burst_bytes: u64,
    /// Longest stay in the queue; more is dropped.
    pub latency_ms: u64,
}

impl Shape {
    /// A link of this rate, with the bucket that the published baselines were measured with.
    pub fn of(rate_bits: u64) -> Self {
        Self { rate_bits, burst_bytes: 1 << 20, latency_ms: 50 }
    }
}

impl Hosts {
    /// Whether this process may make namespaces, or why not.
    ///
    /// # Errors
    /// The reason, to be printed where a test or bench is skipped.
    pub fn available() -> std::result::Result<(), String> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces need root".into());
        }
        let probe = Self::new(1, None).map_err(|error| error.to_string())?;
        drop(probe);
        Ok(())
    }

    /// `hosts` hosts (at most 250), each reachable from each, unshaped or shaped.
    ///
    /// # Errors
    /// When `ip` or `tc` refuses.
    pub fn new(hosts: usize, shape: Option<Shape>) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let nth = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("lp{}-{nth}", std::process::id());
        let network = Self { prefix, hosts };
        let hub = network.hub();
        ip(&["netns", "add", &hub])?;
        ip(&["-n", &hub, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &hub, "link", "set", "br0", "up"])?;
        for host in 0..hosts {
            network.add_host(host, shape)?;
        }
        Ok(network)
    }

    fn add_host(&self, host: usize, shape: Option<Shape>) -> Result<()> {
        let (hub, name, port) = (self.hub(), self.name(host), format!("p{host}"));
        ip(&["netns", "add", &name])?;
        let veth = ["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name];
        ip(&[&["-n", &hub], &veth[..]].concat())?;
        ip(&["-n", &hub, "link", "set", &port, "master", "br0", "up"])?;
        let address = format!("{}/16", self.address(host));
        ip(&["-n", &name, "address", "add", &address, "dev", "eth0"])?;
        ip(&["-n", &name, "link", "set", "eth0", "up"])?;
        ip(&["-n", &name, "link", "set", "lo", "up"])?;
        if let Some(shape) = shape {
            for (namespace, device) in [(&name, "eth0"), (&hub, port.as_str())] {
                let (rate, burst) = (shape.rate_bits.to_string(), shape.burst_bytes.to_string());
                let latency = format!("{}ms", shape.latency_ms);
                let bucket = ["rate", &rate, "burst", &burst, "latency", &latency];
                let place = ["-n", namespace, "qdisc", "add", "dev", device, "root", "tbf"];
                run("tc", &[&place[..], &bucket].concat())?;
            }
        }
        Ok(())
    }

    /// The address of a host.
    pub fn address(&self, host: usize) -> IpAddr {
        let low = u8::try_from(host + 1).expect("at most 250 hosts");
        IpAddr::V4(Ipv4Addr::new(10, 77, 0, low))
    }

    /// A command that runs `program` on a host. The process is the program itself, so signals reach it.
    pub fn command(&self, host: usize, program: &std::path::Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(host)]).arg(program);
        command
    }

    /// Cuts or mends a host's link.
    ///
    /// # Errors
    /// When `ip` refuses.
    pub fn set_link(&self, host: usize, up: bool) -> Result<()> {
        ip(&["-n", &self.name(host), "link", "set", "eth0", if up { "up" } else { "down" }])
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }

    fn name(&self, host: usize) -> String {
        format!("{}-h{host}", self.prefix)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in (0..self.hosts).map(|host| self.name(host)).chain([self.hub()]) {
            if let Err(error) = ip(&["netns", "delete", &name]) {
                tracing::debug!(%error, "a namespace was not there to be removed");
            }
        }
    }
}

fn ip(args: &[&str]) -> Result<()> {
    run("ip", args)
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let what = || format!("{program} {}", args.join(" "));
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::io(what(), source))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Error::Invalid(format!("{}: {}", what(), said.trim())))
}
