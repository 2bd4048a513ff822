//! `nodes`, `drain`, `undrain` and `events`: the cluster itself.

use super::Environment;
use super::cluster::ClusterArgs;
use crate::backend::scheduler::Scheduler;
use crate::error::CliError;
use crate::screen;
use lampyris_proto::v1;
use serde_json::{Value, json as object};

/// Nodes of a page.
const PAGE: u32 = 1000;

#[derive(Debug, clap::Args)]
pub(crate) struct NodesArgs {
    /// Only this group
    #[arg(long, default_value = "")]
    group: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DrainArgs {
    /// Name of the node
    node: String,
    /// Also suspend what runs there; it goes on elsewhere
    #[arg(long)]
    suspend_jobs: bool,
    /// Put the node back in service instead
    #[arg(long, conflicts_with = "suspend_jobs")]
    undo: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct EventsArgs {
    /// Only about this job
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    job: u64,
    /// Only about this node
    #[arg(long, default_value = "", conflicts_with = "job")]
    node: String,
    /// The newest so many
    #[arg(long, short = 'n', default_value_t = 50)]
    lines: u32,
    /// Go on with what happens later
    #[arg(long, short)]
    follow: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// All nodes of a group; of all groups if it is empty.
pub(crate) fn all(scheduler: &Scheduler, group: &str) -> Result<Vec<v1::Node>, CliError> {
    let (mut nodes, mut page_token) = (Vec::new(), String::new());
    loop {
        let group = group.to_string();
        let request = v1::ListNodesRequest { page_size: PAGE, page_token, group };
        let page = scheduler
            .call(request, async |mut client, request| client.list_nodes(request).await)?;
        nodes.extend(page.nodes);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(nodes);
        }
    }
}

/// A node as JSON.
pub(crate) fn json(node: &v1::Node) -> Value {
    let capacity = node.capacity.clone().unwrap_or_default();
    let hardware = node.hardware.clone().unwrap_or_default();
    object!({
        "name": node.name,
        "group": capacity.group,
        "devices": capacity.devices,
        "zone": capacity.zone,
        "switch": capacity.switch,
        "state": node.state().as_str_name().trim_start_matches("STATE_").to_lowercase(),
        "draining": node.draining,
        "reason": node.reason.clone().unwrap_or_default().text,
        "jobs": node.holdings.iter().map(|held| held.job).collect::<Vec<u64>>(),
        "cpu": hardware.cpu,
        "cores": hardware.cores,
        "memory_bytes": hardware.memory_bytes,
        "memory_bandwidth": hardware.memory_bandwidth,
        "disk_free_bytes": hardware.disk_free_bytes,
    })
}

pub(crate) fn nodes(args: &NodesArgs, environment: &Environment) -> Result<u8, CliError> {
    let nodes = all(&args.cluster.connect(environment)?, &args.group)?;
    match args.json {
        true => screen::json(&nodes.iter().map(json).collect::<Vec<Value>>()),
        false => screen::say(screen::jobs::nodes(&nodes, screen::width())),
    }
    Ok(0)
}

pub(crate) fn drain(args: &DrainArgs, environment: &Environment) -> Result<u8, CliError> {
    let scheduler = args.cluster.connect(environment)?;
    let node = match args.undo {
        true => resume_node(&scheduler, &args.node, Whose::Anybodys)?,
        false => drain_node(&scheduler, &args.node, args.suspend_jobs, Whose::Anybodys)?,
    };
    match args.json {
        true => screen::json(&json(&node)),
        false => screen::say(screen::jobs::nodes(&[node], screen::width())),
    }
    Ok(0)
}

/// Who makes a drain or ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// A person.
    Anybodys,
    /// The program that hosts the node's worker: what it makes it ends itself, and nothing else.
    Hosts,
}

/// Gives a node nothing new.
pub(crate) fn drain_node(
    scheduler: &Scheduler,
    node: &str,
    suspend_jobs: bool,
    whose: Whose,
) -> Result<v1::Node, CliError> {
    let by_host = whose == Whose::Hosts;
    let request = v1::DrainNodeRequest { node: node.into(), suspend_jobs, by_host };
    scheduler.call(request, async |mut client, request| client.drain_node(request).await)
}

/// Puts a node back in service.
pub(crate) fn resume_node(
    scheduler: &Scheduler,
    node: &str,
    whose: Whose,
) -> Result<v1::Node, CliError> {
    let only_host = whose == Whose::Hosts;
    let request = v1::ResumeNodeRequest { node: node.into(), only_host };
    scheduler.call(request, async |mut client, request| client.resume_node(request).await)
}

fn event_json(event: &v1::Event) -> Value {
    let (job, node) = match &event.subject {
        Some(v1::event::Subject::Job(job)) => (Some(*job), None),
        Some(v1::event::Subject::Node(node)) => (None, Some(node.clone())),
        None => (None, None),
    };
    let reason = event.reason.clone().unwrap_or_default();
    object!({
        "sequence": event.sequence,
        "time_s": event.time.map(|time| time.seconds),
        "job": job,
        "node": node,
        "code": reason.code,
        "text": reason.text,
    })
}

pub(crate) fn events(args: &EventsArgs, environment: &Environment) -> Result<u8, CliError> {
    let scheduler = args.cluster.connect(environment)?;
    let request = v1::ListEventsRequest {
        page_size: args.lines,
        job: args.job,
        node: args.node.clone(),
        newest: true,
        ..Default::default()
    };
    let page =
        scheduler.call(request, async |mut client, request| client.list_events(request).await)?;
    match args.json {
        true => page.events.iter().for_each(|event| screen::json(&event_json(event))),
        false => screen::say(screen::jobs::events(&page.events, screen::width())),
    }
    if !args.follow {
        return Ok(0);
    }
    let after = page.events.last().map_or(0, |event| event.sequence);
    let request = v1::WatchEventsRequest { after, job: args.job, node: args.node.clone() };
    let watch =
        async |mut client: lampyris_proto::v1::scheduler_service_client::SchedulerServiceClient<
            _,
        >,
               request| { client.watch_events(request).await };
    scheduler.stream(request, watch, &mut |event| {
        match args.json {
            true => screen::json(&event_json(&event)),
            false => screen::say(screen::jobs::event(&event)),
        }
        true
    })?;
    Ok(0)
}
