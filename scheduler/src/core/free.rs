//! Index of free nodes by zone and switch, and the choice among them: as few switches and zones as can be, and the
//! tightest fit, so that large holes stay large.

use super::{Node, NodeId};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Free nodes of one group that are in service and kept for nobody.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct FreeNodes {
    zones: BTreeMap<String, Zone>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Zone {
    switches: BTreeMap<String, Switch>,
    /// Nodes in `Switch::whole` of all switches.
    whole: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Switch {
    /// Entirely free nodes.
    whole: BTreeSet<NodeId>,
    /// Shared nodes with free devices, by their number.
    slots: BTreeSet<(u32, NodeId)>,
}

/// What a job needs of each node: `None` all of it, else so many devices of a shared one.
pub(super) type PerNode = Option<u32>;

impl Switch {
    fn count(&self, per_node: PerNode) -> usize {
        match per_node {
            None => self.whole.len(),
            Some(devices) => self.slots.range((devices, NodeId(0))..).count(),
        }
    }

    fn take(&self, n: usize, per_node: PerNode) -> Vec<NodeId> {
        match per_node {
            None => self.whole.iter().take(n).copied().collect(),
            Some(devices) => {
                self.slots.range((devices, NodeId(0))..).take(n).map(|(_, id)| *id).collect()
            }
        }
    }
}

impl Zone {
    fn count(&self, per_node: PerNode) -> usize {
        match per_node {
            None => self.whole,
            Some(_) => self.switches.values().map(|switch| switch.count(per_node)).sum(),
        }
    }

    /// `n` nodes under as few switches as can be: the tightest switch that holds them all, else the fullest first.
    fn take(&self, n: usize, per_node: PerNode) -> Vec<NodeId> {
        let mut counts: Vec<(usize, &Switch)> =
            self.switches.values().map(|switch| (switch.count(per_node), switch)).collect();
        counts.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let mut taken = Vec::with_capacity(n);
        let mut next = 0;
        while taken.len() < n && next < counts.len() {
            let missing = n - taken.len();
            // Falling counts: the last one that still holds the rest is the tightest.
            let fitting = counts[next..].partition_point(|(count, _)| *count >= missing);
            let (_, switch) = counts[next + fitting.saturating_sub(1)];
            taken.extend(switch.take(missing, per_node));
            next += 1;
        }
        taken
    }
}

impl FreeNodes {
    /// Adds a node with `free` devices.
    pub(super) fn insert(&mut self, node: &Node, free: u32) {
        let place = &node.capacity.place;
        let zone = self.zones.entry(place.zone.clone()).or_default();
        let switch = zone.switches.entry(place.switch.clone()).or_default();
        if free == node.capacity.devices && switch.whole.insert(node.id) {
            zone.whole += 1;
        }
        if node.capacity.shared && free > 0 {
            switch.slots.insert((free, node.id));
        }
    }

    /// Removes a node that was added with `free` devices.
    pub(super) fn remove(&mut self, node: &Node, free: u32) {
        let place = &node.capacity.place;
        let Some(zone) = self.zones.get_mut(&place.zone) else { return };
        let Some(switch) = zone.switches.get_mut(&place.switch) else { return };
        if switch.whole.remove(&node.id) {
            zone.whole -= 1;
        }
        switch.slots.remove(&(free, node.id));
        if switch.whole.is_empty() && switch.slots.is_empty() {
            zone.switches.remove(&place.switch);
        }
    }

    /// Those that are not among `unsuited`.
    pub(super) fn without(&self, unsuited: &BTreeSet<NodeId>) -> Cow<'_, FreeNodes> {
        if unsuited.is_empty() {
            return Cow::Borrowed(self);
        }
        let mut rest = self.clone();
        for zone in rest.zones.values_mut() {
            for switch in zone.switches.values_mut() {
                switch.whole.retain(|id| !unsuited.contains(id));
                switch.slots.retain(|(_, id)| !unsuited.contains(id));
            }
            zone.whole = zone.switches.values().map(|switch| switch.whole.len()).sum();
        }
        Cow::Owned(rest)
    }

    /// Whether no node has anything free.
    pub(super) fn is_empty(&self) -> bool {
        self.zones.values().all(|zone| zone.switches.is_empty())
    }

    /// Nodes that would do.
    pub(super) fn count(&self, per_node: PerNode) -> usize {
        self.zones.values().map(|zone| zone.count(per_node)).sum()
    }

    /// Nodes of one zone that would do.
    pub(super) fn count_in(&self, zone: &str, per_node: PerNode) -> usize {
        self.zones.get(zone).map_or(0, |zone| zone.count(per_node))
    }

    /// All nodes of a zone (or of all zones) that would do.
    pub(super) fn all(&self, zone: Option<&str>, per_node: PerNode) -> Vec<NodeId> {
        let zones = self.zones.iter().filter(|(name, _)| zone.is_none_or(|zone| zone == *name));
        zones
            .flat_map(|(_, zone)| zone.switches.values())
            .flat_map(|switch| switch.take(usize::MAX, per_node))
            .collect()
    }

    /// The best `n` nodes: of one switch, else of one zone, else, if `across_zones`, of all.
    pub(super) fn choose(
        &self,
        n: usize,
        per_node: PerNode,
        across_zones: bool,
    ) -> Option<Vec<NodeId>> {
        if let Some(nodes) = self.in_one_switch(n, per_node) {
            return Some(nodes);
        }
        let mut zones: Vec<(usize, &Zone)> =
            self.zones.values().map(|zone| (zone.count(per_node), zone)).collect();
        zones.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let fitting = zones.partition_point(|(count, _)| *count >= n);
        if fitting > 0 {
            return Some(zones[fitting - 1].1.take(n, per_node));
        }
        if !across_zones || zones.iter().map(|(count, _)| count).sum::<usize>() < n {
            return None;
        }
        let mut taken = Vec::with_capacity(n);
        for (_, zone) in zones {
            taken.extend(zone.take(n - taken.len(), per_node));
        }
        Some(taken)
    }

    fn in_one_switch(&self, n: usize, per_node: PerNode) -> Option<Vec<NodeId>> {
        let switches = self.zones.values().flat_map(|zone| zone.switches.values());
        if let (1, Some(devices)) = (n, per_node) {
            // One piece of a shared node: the node with the smallest hole.
            let holes = switches.filter_map(|s| s.slots.range((devices, NodeId(0))..).next());
            return holes.min().map(|(_, id)| vec![*id]);
        }
        let fitting = switches
            .map(|switch| (switch.count(per_node), switch))
            .filter(|(count, _)| *count >= n)
            .min_by_key(|(count, _)| *count)?;
        Some(fitting.1.take(n, per_node))
    }
}
