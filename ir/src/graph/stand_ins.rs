//! Values that others stand in for: a graph whose readers of one read the other, in an order that allows it.

use cranelift_entity::SecondaryMap;
use cranelift_entity::packed_option::PackedOption;

use super::{Builder, Def, Graph, Node, Value, Values};

/// What stands in for values; chains end.
#[derive(Clone, Debug, Default)]
pub(super) struct StandIns {
    others: SecondaryMap<Value, PackedOption<Value>>,
    are_any: bool,
}

impl StandIns {
    /// The first that is said of a value holds.
    pub(super) fn add(&mut self, value: Value, other: Value) {
        if self.others[value].is_none() && self.last(other) != value {
            self.others[value] = other.into();
            self.are_any = true;
        }
    }

    fn last(&self, mut value: Value) -> Value {
        while let Some(other) = self.others[value].expand() {
            value = other;
        }
        value
    }

    /// The graph without what nothing reads then. Nodes keep their order but for what must come before a reader.
    pub(super) fn settle(&self, graph: Graph) -> Graph {
        if !self.are_any {
            return graph;
        }
        let mut b = Builder::new(&graph.name);
        let mut map: SecondaryMap<Value, PackedOption<Value>> =
            SecondaryMap::with_capacity(graph.value_count());
        for (name, value) in &graph.inputs {
            map[*value] = b.input(name, graph.ty(*value).clone()).into();
        }
        let needs = |node: Node| graph.node(node).ins.iter().filter_map(|&v| self.maker(&graph, v));
        let mut live: SecondaryMap<Node, bool> = SecondaryMap::new();
        let mut left: Vec<Node> = graph.outputs.iter().filter_map(|(_, v)| self.maker(&graph, *v)).collect();
        while let Some(node) = left.pop() {
            if !std::mem::replace(&mut live[node], true) {
                left.extend(needs(node));
            }
        }
        let mut written: SecondaryMap<Node, bool> = SecondaryMap::new();
        for (node, _) in graph.nodes().filter(|(node, _)| live[*node]) {
            let mut left = vec![node];
            while let Some(&node) = left.last() {
                match needs(node).find(|&before| !written[before]) {
                    Some(before) if !written[node] => left.push(before),
                    _ => {
                        left.pop();
                        if std::mem::replace(&mut written[node], true) {
                            continue;
                        }
                        let data = graph.node(node);
                        let at = |v: &Value| map[self.last(*v)].expect("operands are written first");
                        let ins: Values = data.ins.iter().map(at).collect();
                        let outs = b.push_copy(&graph, data, ins);
                        for (&old, new) in data.outs.iter().zip(outs) {
                            map[old] = new.into();
                        }
                    }
                }
            }
        }
        for (name, value) in &graph.outputs {
            b.output(name, map[self.last(*value)].expect("outputs are written"));
        }
        b.finish_unchecked()
    }

    /// The node that makes what stands in for a value.
    fn maker(&self, graph: &Graph, value: Value) -> Option<Node> {
        match graph.def(self.last(value)) {
            Def::Input(_) => None,
            Def::Output { node, .. } => Some(node),
        }
    }
}
