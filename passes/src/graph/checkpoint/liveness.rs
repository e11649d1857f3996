//! How much memory the values of a graph take while it runs, node after node.
//!
//! An estimate, from the graph alone: every value has its bytes from the node that makes it to the last that reads it.
//! Values under another shape are no values of their own; inputs, constants and outputs have a place elsewhere.

use cranelift_entity::{EntityRef, SecondaryMap};
use windlass_ir::graph::Def;
use windlass_ir::{Graph, Node, Op, Value};

use crate::stats::bytes;

/// Whether a value is the first of its kind, or one that was computed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// As in the graph.
    First = 0,
    /// Computed again.
    Copy = 1,
}

/// A node's place in the order in which nodes run.
#[derive(Clone, Debug)]
pub struct Turn {
    /// The node.
    pub node: Node,
    /// Whether it runs for the first time.
    pub version: Version,
    /// Its operands.
    pub ins: Vec<(Value, Version)>,
}

/// The values of a graph as they are stored.
pub struct Stored {
    /// The value whose bytes a value has.
    pub root: SecondaryMap<Value, Option<Value>>,
    /// How many bytes a value takes of what is planned.
    pub bytes: SecondaryMap<Value, u64>,
}

/// Whether a node's result is its operand, seen otherwise.
fn is_view(op: &Op) -> bool {
    matches!(
        op,
        Op::Reshape(_)
            | Op::Transpose(_)
            | Op::Broadcast(_)
            | Op::Flatten(_)
            | Op::Squeeze(_)
            | Op::Unsqueeze(_)
            | Op::StopGradient(_)
            | Op::Recompute(_)
    )
}

impl Stored {
    /// The values of a graph.
    pub fn new(graph: &Graph) -> Stored {
        let mut stored = Stored { root: SecondaryMap::new(), bytes: SecondaryMap::new() };
        for (_, data) in graph.nodes() {
            for &out in &data.outs {
                stored.root[out] = is_view(&data.op).then(|| stored.of(data.ins[0]));
                if stored.root[out].is_none() && !matches!(*data.op, Op::Constant(_)) && !data.ins.is_empty()
                {
                    stored.bytes[out] = bytes(graph, out);
                }
            }
        }
        for (_, value) in graph.outputs() {
            let root = stored.of(*value);
            stored.bytes[root] = 0;
        }
        stored
    }

    /// The value whose bytes a value has.
    pub fn of(&self, value: Value) -> Value {
        self.root[value].unwrap_or(value)
    }

    /// The most bytes that are in use at a time.
    pub fn peak(&self, graph: &Graph, turns: &[Turn]) -> u64 {
        // When the bytes of each value are made and read last; views have those of what they show, copy or not.
        let mut owner: [SecondaryMap<Value, Option<usize>>; 2] = [SecondaryMap::new(), SecondaryMap::new()];
        let mut spans: Vec<(usize, u64)> = Vec::new();
        let mut made: Vec<u64> = vec![0; turns.len()];
        for (at, turn) in turns.iter().enumerate() {
            for &(value, version) in &turn.ins {
                if let Some(span) = owner[version as usize][value] {
                    spans[span].0 = at;
                }
            }
            for &out in &graph.node(turn.node).outs {
                owner[turn.version as usize][out] = match self.root[out] {
                    Some(_) => turn.ins.first().and_then(|&(value, version)| owner[version as usize][value]),
                    None => {
                        spans.push((at, self.bytes[out]));
                        made[at] += self.bytes[out];
                        Some(spans.len() - 1)
                    }
                };
            }
        }
        let mut freed: Vec<u64> = vec![0; turns.len()];
        spans.iter().for_each(|&(last, bytes)| freed[last] += bytes);
        let (mut live, mut peak) = (0, 0);
        for (made, freed) in made.into_iter().zip(freed) {
            live += made;
            peak = peak.max(live);
            live -= freed;
        }
        peak
    }
}

/// The order of a graph as it is.
pub fn in_order(graph: &Graph) -> Vec<Turn> {
    let turn = |(node, data): (Node, &windlass_ir::graph::NodeData)| {
        let ins = data.ins.iter().map(|&value| (value, Version::First)).collect();
        Turn { node, version: Version::First, ins }
    };
    graph.nodes().map(turn).collect()
}

/// The most bytes that are in use at a time while a graph runs, as far as a graph shows it.
pub fn peak(graph: &Graph) -> u64 {
    Stored::new(graph).peak(graph, &in_order(graph))
}

/// The position of the node that makes a value; none for inputs.
pub fn position(graph: &Graph, value: Value) -> Option<usize> {
    match graph.def(value) {
        Def::Input(_) => None,
        Def::Output { node, .. } => Some(node.index()),
    }
}
