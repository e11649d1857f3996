//! Telling a graph's head, boundary and rest apart (see `plan.rs`), and taking each out as a graph.

use cranelift_entity::SecondaryMap;
use windlass_ir::graph::{Def, Node, Value, Values};
use windlass_ir::{Builder, Graph, Limits, Op, Tensor, TensorType};

use super::control::is_control;
use crate::compile::late_operands;
use crate::error::Error;

/// How the nodes of a graph fall apart.
pub(super) struct Parts {
    pub(super) head: Vec<Node>,
    pub(super) head_ins: Vec<Value>,
    pub(super) head_outs: Vec<Value>,
    pub(super) boundary: Vec<Node>,
    pub(super) rest: Vec<Node>,
    pub(super) rest_ins: Vec<Value>,
    pub(super) late: SecondaryMap<Value, bool>,
}

#[derive(Clone, Copy, PartialEq, Default)]
enum Part {
    /// An input or a constant: at hand everywhere.
    #[default]
    Given,
    Head,
    Boundary,
    Rest,
}

impl Parts {
    pub(super) fn of(graph: &Graph) -> Parts {
        let mut parts = Parts {
            head: Vec::new(),
            head_ins: Vec::new(),
            head_outs: Vec::new(),
            boundary: Vec::new(),
            rest: Vec::new(),
            rest_ins: Vec::new(),
            late: SecondaryMap::new(),
        };
        let mut place: SecondaryMap<Value, Part> = SecondaryMap::with_capacity(graph.value_count());
        for (node, data) in graph.nodes() {
            if matches!(*data.op, Op::Constant(_)) {
                continue;
            }
            let late = late_operands(&data.op);
            let settled = |v: &Value| matches!(place[*v], Part::Given | Part::Head);
            let known = |v: &Value| graph.ty(*v).as_shape().is_some();
            let part = if !data.ins.iter().all(settled) {
                Part::Rest
            } else if !late.is_empty() {
                // Its operands' values are at hand when the rest is planned.
                for &index in &late {
                    parts.late[data.ins[index as usize]] = true;
                }
                Part::Rest
            } else if data.outs.iter().all(known) && !is_control(&data.op) {
                Part::Head
            } else {
                Part::Boundary
            };
            for &out in &data.outs {
                place[out] = part;
            }
            match part {
                Part::Given | Part::Head => parts.head.push(node),
                Part::Boundary => parts.boundary.push(node),
                Part::Rest => parts.rest.push(node),
            }
        }
        parts.find_crossings(graph, &place);
        parts
    }

    /// Which values each part reads of those before it.
    fn find_crossings(&mut self, graph: &Graph, place: &SecondaryMap<Value, Part>) {
        let is_constant = |v: Value| graph.as_constant(v).is_some();
        let mut head_ins = Unique::default();
        for &node in &self.head {
            for &value in &graph.node(node).ins {
                if matches!(graph.def(value), Def::Input(_)) {
                    head_ins.add(value);
                }
            }
        }
        let outputs = graph.outputs().iter().map(|(_, v)| *v);
        let mut rest_ins = Unique::default();
        if !self.rest.is_empty() {
            let reads = self.rest.iter().flat_map(|&node| graph.node(node).ins.iter().copied());
            for value in reads.chain(outputs.clone()) {
                if place[value] != Part::Rest && !is_constant(value) {
                    rest_ins.add(value);
                }
            }
        }
        let mut head_outs = Unique::default();
        let boundary = self.boundary.iter().flat_map(|&node| graph.node(node).ins.iter().copied());
        for value in boundary.chain(rest_ins.0.iter().copied()).chain(outputs) {
            if place[value] == Part::Head {
                head_outs.add(value);
            }
        }
        (self.head_ins, self.head_outs, self.rest_ins) = (head_ins.0, head_outs.0, rest_ins.0);
    }
}

/// Values in order of first mention, each once.
#[derive(Default)]
struct Unique(Vec<Value>, SecondaryMap<Value, bool>);

impl Unique {
    fn add(&mut self, value: Value) {
        if !std::mem::replace(&mut self.1[value], true) {
            self.0.push(value);
        }
    }
}

/// The graph of `nodes`, with inputs and outputs in place of these values. Constants are copied along.
pub(super) fn extract(graph: &Graph, nodes: &[Node], ins: &[Value], outs: &[Value]) -> Result<Graph, Error> {
    let mut b = Builder::new(&graph.name);
    let mut map: SecondaryMap<Value, Option<Value>> = SecondaryMap::with_capacity(graph.value_count());
    for &value in ins {
        map[value] = Some(b.input(&name_of(graph, value), graph.ty(value).clone()));
    }
    copy_nodes(graph, nodes.iter().copied(), &mut b, &mut map)?;
    for (index, &value) in outs.iter().enumerate() {
        let new = mapped(graph, &mut b, &mut map, value);
        let name = graph.outputs().iter().find(|(_, v)| *v == value).map(|(name, _)| name.clone());
        // One value may be several outputs of the graph, so a name is used once.
        let taken = |name: &String| b.graph().outputs().iter().any(|(n, _)| n == name);
        let name = name.filter(|name| !taken(name)).unwrap_or_else(|| format!("out.{index}"));
        b.output(&name, new);
    }
    Ok(b.finish()?)
}

/// What a value is called as an input of a part.
fn name_of(graph: &Graph, value: Value) -> String {
    match graph.def(value) {
        Def::Input(index) => graph.inputs()[index as usize].0.clone(),
        Def::Output { .. } => format!("part.{value}"),
    }
}

/// What is known of an input of a graph that is planned.
#[derive(Clone, PartialEq)]
pub(super) enum Key {
    Type(TensorType),
    Value(Tensor),
}

/// A graph with constants in place of the inputs whose values are known, and the types of the others.
pub(super) fn with_keys(
    graph: &Graph,
    keys: &[Key],
    limits: &Limits,
) -> Result<(Graph, Vec<TensorType>), Error> {
    let mut types = Vec::new();
    let mut b = Builder::new(&graph.name).with_limits(limits.clone());
    let mut map: SecondaryMap<Value, Option<Value>> = SecondaryMap::with_capacity(graph.value_count());
    for ((name, value), key) in graph.inputs().iter().zip(keys) {
        map[*value] = Some(match key {
            Key::Value(tensor) => b.constant(tensor.clone()),
            Key::Type(ty) => {
                types.push(ty.clone());
                b.input(name, ty.clone())
            }
        });
    }
    copy_nodes(graph, graph.nodes().map(|(node, _)| node), &mut b, &mut map)?;
    for (name, value) in graph.outputs() {
        let new = mapped(graph, &mut b, &mut map, *value);
        b.output(name, new);
    }
    Ok((b.finish()?, types))
}

fn copy_nodes(
    graph: &Graph,
    nodes: impl Iterator<Item = Node>,
    b: &mut Builder,
    map: &mut SecondaryMap<Value, Option<Value>>,
) -> Result<(), Error> {
    for node in nodes {
        let data = graph.node(node);
        if matches!(*data.op, Op::Constant(_)) {
            continue;
        }
        let ins: Values = data.ins.iter().map(|&v| mapped(graph, b, map, v)).collect();
        let outs = b.push(data.op.clone(), &ins, data.name.clone())?;
        for (&old, &new) in data.outs.iter().zip(&outs) {
            map[old] = Some(new);
        }
    }
    Ok(())
}

/// The new value for an old one; a constant is copied when first read.
fn mapped(
    graph: &Graph,
    b: &mut Builder,
    map: &mut SecondaryMap<Value, Option<Value>>,
    value: Value,
) -> Value {
    if let Some(new) = map[value] {
        return new;
    }
    let constant = graph.as_constant(value).expect("what a part reads is mapped before it").clone();
    let new = b.constant(constant);
    map[value] = Some(new);
    new
}
