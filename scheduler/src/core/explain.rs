//! Why a job stands where it stands, found out when somebody asks: a queue of 100,000 jobs is not rewritten at every event.

use super::queue::Group;
use super::{Job, JobState, Node, Reason, Scheduler};

impl Scheduler {
    /// Why a job stands where it stands, now.
    pub fn explain(&self, job: &Job) -> Reason {
        let waits = matches!(job.state, JobState::Queued | JobState::Suspended);
        if !waits || !job.is_waiting() || job.not_before > self.now {
            return job.reason.clone();
        }
        if self.recovery.is_some() {
            return Reason::WaitsForNodeReports;
        }
        let group = &job.spec.group;
        match self.groups.get(group) {
            Some(known) if self.nodes.iter().any(|node| node.capacity.group == *group) => {
                self.why_it_waits(job, known)
            }
            _ => Reason::NoSuchGroup { group: group.clone() },
        }
    }

    fn why_it_waits(&self, job: &Job, group: &Group) -> Reason {
        let name = job.spec.group.clone();
        let wanted = job.spec.nodes.first().copied().unwrap_or(0);
        let smallest = job.spec.nodes.last().copied().unwrap_or(0);
        let capacity = self.in_service_for(group, job);
        if capacity < smallest {
            return self.too_large(job, smallest, capacity);
        }
        if let Some(key) = self.over_quota(job)
            && let Some(limit) = self.limit(&key)
        {
            let held = self.held(&key);
            let (user, priority) = (key.user, key.priority);
            return Reason::OverQuota { user, priority, group: name, held, limit };
        }
        if let Some(nodes) = group.claims.get(&job.id) {
            let mut jobs: Vec<_> =
                nodes.iter().flat_map(|node| self.at(*node).held.keys().copied()).collect();
            jobs.sort_unstable();
            jobs.dedup();
            return Reason::WaitsForSuspends { jobs };
        }
        let free = group.free.without(&job.unsuited).count(job.spec.devices_per_node) as u32;
        if free >= wanted {
            return match (group.first_in_line, self.cross_zone) {
                (Some(first), _) if first != job.id => Reason::WaitsForTurn { behind: first },
                (_, Some(by)) => Reason::CrossZoneTaken { by },
                _ => Reason::WaitsForNodes { group: name, wanted, free, capacity },
            };
        }
        let within_quantum = group
            .running
            .range(..(job.spec.priority, lampyris_proto::JobId(0)))
            .filter_map(|(_, id)| Some((self.get(*id).running_since?, *id)))
            .min();
        if let Some((since, id)) = within_quantum {
            let end = since + self.policy.min_quantum_ms;
            if end > self.now {
                return Reason::WaitsForQuantum { job: id, left_ms: end - self.now };
            }
        }
        Reason::WaitsForNodes { group: name, wanted, free, capacity }
    }

    /// There are not enough nodes in service for the job's smallest size; a node that is unfit is named.
    fn too_large(&self, job: &Job, wanted: u32, capacity: u32) -> Reason {
        let group = job.spec.group.clone();
        let unfit = |node: &&Node| node.capacity.group == group && node.unfit_until > self.now;
        match self.nodes.iter().find(unfit) {
            None => Reason::TooLarge { group, wanted, capacity },
            Some(node) => Reason::NodesUnfit {
                wanted,
                capacity,
                node: node.name.clone(),
                left_ms: node.unfit_until - self.now,
                message: node.unfit_for.clone(),
                group,
            },
        }
    }
}
