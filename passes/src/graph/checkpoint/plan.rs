//! Which values are kept and which are computed again.
//!
//! 1. The place over which most bytes are kept parts the nodes into early and late ones: in a training step, forward
//!    and backward. Late nodes may use copies of early values.
//! 2. The early part is cut into segments that make at most so many bytes that late nodes need. Cuts are where the
//!    fewest bytes go from what is before to what is after; those are kept, and everything else would be computed
//!    again, each value once and when it is first needed. Several sizes of segments are tried.
//! 3. Of the least work that stays within the limit, values are kept after all as long as they fit, those first that
//!    cost most to make for their bytes.

use cranelift_entity::{EntityRef, SecondaryMap};
use windlass_ir::graph::NodeData;
use windlass_ir::{Graph, Node, Op, Value};

use super::liveness::{Stored, Turn, Version, in_order, position};
use crate::stats::{bytes, node_work};

/// Sizes of segments that are tried, each smaller than the one before by this factor.
const SIZES: usize = 24;
const SHRINK: f64 = 0.8;

/// A value is kept over a place if nothing reads it for this part of all nodes.
const LONG: usize = 16;

/// Operations that take as long as to write and read a byte.
const BYTE_WORK: u64 = 8;

/// A graph under consideration.
struct Early<'g> {
    graph: &'g Graph,
    stored: Stored,
    /// How many nodes are early.
    count: usize,
    /// Early values that late nodes read.
    needed: Vec<Value>,
    /// The position of the last early node that reads each value.
    last_early: SecondaryMap<Value, usize>,
}

/// The order in which nodes run within a limit, as far as that is possible; by default half of what they take as they
/// are. `None` if they are to stay as they are.
pub fn plan(graph: &Graph, limit: Option<u64>) -> Option<Vec<Turn>> {
    let stored = Stored::new(graph);
    let turns = in_order(graph);
    let peak = stored.peak(graph, &turns);
    let limit = limit.unwrap_or(peak / 2);
    if peak <= limit {
        return None;
    }
    let early = Early::new(graph, stored, &turns)?;
    let all = early.needed.iter().map(|&v| early.stored.bytes[v]).sum::<u64>();
    let mut best: Option<(bool, u64, u64, SecondaryMap<Value, bool>)> = None;
    for step in 0..SIZES {
        let size = (all as f64 * SHRINK.powi(step as i32)) as u64;
        let kept = early.segments(size);
        let turns = early.turns(&kept);
        let (peak, work) = (early.stored.peak(graph, &turns), early.work(&turns));
        // Within the limit the least work counts, else the least memory.
        let rank = |peak: u64, work: u64| if peak <= limit { (false, work) } else { (true, peak) };
        let (exceeds, rated) = rank(peak, work);
        if best.as_ref().is_none_or(|(other, value, ..)| (exceeds, rated) < (*other, *value)) {
            best = Some((exceeds, rated, peak, kept));
        }
    }
    let (exceeds, _, least, mut kept) = best?;
    if exceeds && least >= peak {
        return None;
    }
    let limit = limit.max(least);
    let mut candidates: Vec<Value> = early.needed.iter().copied().filter(|&v| !kept[v]).collect();
    let rate = |&value: &Value| early.cost(value) as f64 / early.stored.bytes[value].max(1) as f64;
    candidates.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
    for value in candidates {
        kept[value] = true;
        kept[value] = early.stored.peak(graph, &early.turns(&kept)) <= limit;
    }
    Some(early.turns(&kept))
}

impl<'g> Early<'g> {
    fn new(graph: &'g Graph, stored: Stored, turns: &[Turn]) -> Option<Early<'g>> {
        let nodes = graph.node_count();
        // The positions of each stored value: where it is made, then where it is read.
        let mut positions: SecondaryMap<Value, Vec<usize>> = SecondaryMap::new();
        for (at, turn) in turns.iter().enumerate() {
            graph.node(turn.node).outs.iter().for_each(|&out| positions[out].push(at));
            turn.ins.iter().for_each(|&(value, _)| positions[stored.of(value)].push(at));
        }
        // How much more is kept unread over each place than over the one before.
        let mut change = vec![0i128; nodes + 1];
        for value in positions.keys() {
            for pair in positions[value].windows(2) {
                if pair[1] - pair[0] > nodes / LONG && stored.root[value].is_none() {
                    change[pair[0]] += i128::from(stored.bytes[value]);
                    change[pair[1]] -= i128::from(stored.bytes[value]);
                }
            }
        }
        let mut sums = Vec::new();
        change.iter().fold(0, |sum, change| {
            sums.push(sum + change);
            sum + change
        });
        let most = *sums.iter().max()?;
        let count = sums.iter().position(|&sum| sum == most)? + 1;
        let mut last_early: SecondaryMap<Value, usize> = SecondaryMap::new();
        let mut needed = Vec::new();
        for value in positions.keys() {
            let Some(made) = position(graph, value).filter(|&made| made < count) else { continue };
            last_early[value] =
                positions[value].iter().copied().filter(|&at| at < count).max().unwrap_or(made);
            if positions[value].last().is_some_and(|&at| at >= count) && stored.bytes[value] > 0 {
                needed.push(value);
            }
        }
        (most > 0).then_some(Early { graph, stored, count, needed, last_early })
    }

    /// Whether a late node may have a copy of an early value.
    fn is_copied(&self, value: Value, kept: &SecondaryMap<Value, bool>) -> bool {
        let root = self.stored.of(value);
        let is_early = |value: Value| position(self.graph, value).is_some_and(|made| made < self.count);
        let can = |data: &NodeData| {
            data.op.is_pure()
                && !data.ins.is_empty()
                && !matches!(*data.op, Op::If(_) | Op::Loop(_) | Op::Scan(_) | Op::Constant(_))
        };
        is_early(value)
            && is_early(root)
            && !kept[root]
            && self.graph.def_node(root).is_some_and(can)
            // Outputs have a place in any case.
            && self.stored.bytes[root] > 0
    }

    /// The values between segments of which each makes about so many bytes that late nodes need.
    fn segments(&self, size: u64) -> SecondaryMap<Value, bool> {
        // What goes over each place between early nodes to early nodes after it.
        let mut over = vec![0i128; self.count + 1];
        let mut made = vec![0u64; self.count];
        for value in self.last_early.keys() {
            let Some(at) = position(self.graph, value).filter(|&at| at < self.count) else { continue };
            if self.stored.root[value].is_none() && self.last_early[value] > at {
                over[at] += i128::from(self.stored.bytes[value]);
                over[self.last_early[value]] -= i128::from(self.stored.bytes[value]);
            }
        }
        for place in 1..over.len() {
            over[place] += over[place - 1];
        }
        for &value in &self.needed {
            if let Some(at) = position(self.graph, value) {
                made[at] += self.stored.bytes[value];
            }
        }
        let mut cuts = Vec::new();
        let (mut start, mut sum) = (0, 0);
        while start < self.count {
            let mut best: Option<usize> = None;
            let mut place = start;
            while place < self.count && sum < size.max(1) {
                sum += made[place];
                if 2 * sum >= size && best.is_none_or(|best| over[place] <= over[best]) {
                    best = Some(place);
                }
                place += 1;
            }
            if place == self.count {
                break;
            }
            let cut = best.unwrap_or(place - 1);
            cuts.push(cut);
            (start, sum) = (cut + 1, 0);
        }
        let mut kept: SecondaryMap<Value, bool> = SecondaryMap::new();
        for value in self.last_early.keys() {
            let Some(at) = position(self.graph, value) else { continue };
            let crosses = |&cut: &usize| at <= cut && cut < self.last_early[value];
            kept[value] = self.stored.root[value].is_none() && cuts.iter().any(crosses);
        }
        kept
    }

    /// The order in which nodes run if these values are kept.
    fn turns(&self, kept: &SecondaryMap<Value, bool>) -> Vec<Turn> {
        let mut turns = Vec::new();
        let mut copied: SecondaryMap<Node, bool> = SecondaryMap::new();
        let version = |value: Value| if self.is_copied(value, kept) { Version::Copy } else { Version::First };
        for (node, data) in self.graph.nodes() {
            let early = node.index() < self.count;
            let mut ins: Vec<(Value, Version)> = data.ins.iter().map(|&v| (v, Version::First)).collect();
            if !early {
                ins.iter_mut().for_each(|(value, own)| *own = version(*value));
                // What must be computed again first, operands before users.
                let mut waiting: Vec<(Value, bool)> = Vec::new();
                waiting
                    .extend(ins.iter().rev().filter(|(_, v)| *v == Version::Copy).map(|(v, _)| (*v, false)));
                while let Some((value, ready)) = waiting.pop() {
                    let Some(at) = position(self.graph, value).map(Node::new) else { continue };
                    if copied[at] {
                        continue;
                    }
                    let ins: Vec<(Value, Version)> =
                        self.graph.node(at).ins.iter().map(|&v| (v, version(v))).collect();
                    if ready {
                        copied[at] = true;
                        turns.push(Turn { node: at, version: Version::Copy, ins });
                        continue;
                    }
                    waiting.push((value, true));
                    let copies = ins.iter().rev().filter(|(_, version)| *version == Version::Copy);
                    waiting.extend(copies.map(|(value, _)| (*value, false)));
                }
            }
            turns.push(Turn { node, version: Version::First, ins });
        }
        turns
    }

    /// What it takes to make a value.
    fn cost(&self, value: Value) -> u64 {
        position(self.graph, value).map_or(0, |at| self.node_cost(Node::new(at)))
    }

    fn node_cost(&self, node: Node) -> u64 {
        let moved: u64 = self.graph.node(node).outs.iter().map(|&v| bytes(self.graph, v)).sum();
        node_work(self.graph, node).saturating_add(moved.saturating_mul(BYTE_WORK))
    }

    /// What is computed again.
    fn work(&self, turns: &[Turn]) -> u64 {
        let again = turns.iter().filter(|turn| turn.version == Version::Copy);
        again.map(|turn| self.node_cost(turn.node)).sum()
    }
}
