//! The graph level: nodes that apply ops to values, in an order where every value is defined before use.
//!
//! A [`Graph`] is made by a [`Builder`], which infers each node's types as it is pushed, and is
//! never changed afterwards: a pass reads one graph and builds the next with an [`Edit`]. So node
//! order *is* a topological order, ids are dense, and a value's type is always the inferred one.

mod builder;
mod edit;
mod stand_ins;
mod verify;
mod visit;

use std::sync::Arc;

use cranelift_entity::{EntityRef, PrimaryMap, SecondaryMap, entity_impl};
use smallvec::SmallVec;

pub use builder::Builder;
pub use edit::Edit;
pub use verify::verify;

use crate::attrs::Late;
use crate::error::Error;
use crate::interpret;
use crate::ops::Op;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType};

/// Identifies a node: the application of an op.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node(u32);
entity_impl!(Node, "node");

/// Identifies a value: a graph input or an output of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(u32);
entity_impl!(Value, "%");

/// The values a node reads or defines, in order.
pub type Values = SmallVec<[Value; 4]>;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Def {
    /// The graph input of this index.
    Input(u32),
    /// Output `index` of `node`.
    Output {
        /// The defining node.
        node: Node,
        /// Which of its outputs.
        index: u32,
    },
}

/// A node's op, operands, results and the name it had in the model, if any.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeData {
    /// What it computes. Graphs made from another share what stays as it is.
    pub op: Arc<Op>,
    /// Its operands.
    pub ins: Values,
    /// Its results.
    pub outs: Values,
    /// The name of the model's node that it came from.
    pub name: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq)]
struct ValueData {
    def: Def,
    ty: Arc<TensorType>,
}

/// A model: named inputs, nodes, named outputs.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// The graph's name.
    pub name: String,
    nodes: PrimaryMap<Node, NodeData>,
    values: PrimaryMap<Value, ValueData>,
    inputs: Vec<(String, Value)>,
    outputs: Vec<(String, Value)>,
}

impl Graph {
    /// A graph of these parts, whether valid or not; [`verify()`] tells.
    pub(crate) fn assemble(
        name: &str,
        values: Vec<(Def, TensorType)>,
        nodes: Vec<NodeData>,
        inputs: Vec<(String, Value)>,
        outputs: Vec<(String, Value)>,
    ) -> Graph {
        let values = values.into_iter().map(|(def, ty)| ValueData { def, ty: Arc::new(ty) }).collect();
        Graph { name: name.to_string(), nodes: nodes.into_iter().collect(), values, inputs, outputs }
    }

    /// Whether one of the operands of an op is a late attribute's value and is known.
    fn tells_attributes(&self, op: &Op, ins: &[Value]) -> bool {
        let is_known = |&value: &Value| self.ty(value).dtype.is_int() && self.as_constant(value).is_some();
        // Most have no such operand, and asking an op for its attributes takes longer.
        ins.iter().any(is_known)
            && late_operands(op).iter().any(|&(_, i)| ins.get(i as usize).is_some_and(is_known))
    }

    /// The inputs with their names, in order.
    pub fn inputs(&self) -> &[(String, Value)] {
        &self.inputs
    }

    /// The outputs with their names, in order.
    pub fn outputs(&self) -> &[(String, Value)] {
        &self.outputs
    }

    /// Every node, operands before users.
    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (Node, &NodeData)> + ExactSizeIterator {
        self.nodes.iter()
    }

    /// The number of nodes.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// The number of values.
    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    /// A node's contents.
    pub fn node(&self, node: Node) -> &NodeData {
        &self.nodes[node]
    }

    /// A value's type.
    pub fn ty(&self, value: Value) -> &TensorType {
        &self.values[value].ty
    }

    /// Where a value comes from.
    pub fn def(&self, value: Value) -> Def {
        self.values[value].def
    }

    /// The node that defines a value, unless it is an input.
    pub fn def_node(&self, value: Value) -> Option<&NodeData> {
        match self.def(value) {
            Def::Input(_) => None,
            Def::Output { node, .. } => Some(&self.nodes[node]),
        }
    }

    /// The tensor a value is, if a constant defines it.
    pub fn as_constant(&self, value: Value) -> Option<&Tensor> {
        match &*self.def_node(value)?.op {
            Op::Constant(constant) => Some(&constant.value),
            _ => None,
        }
    }

    /// Whether values are numbered as they come: the inputs, then the results of one node after the other.
    pub(crate) fn is_in_order(&self) -> bool {
        let inputs = self.inputs.iter().map(|(_, value)| value);
        let values = inputs.chain(self.nodes.values().flat_map(|data| &data.outs));
        values.eq(&self.values.keys().collect::<Vec<_>>())
    }

    /// How often each value is read, graph outputs included.
    pub fn use_counts(&self) -> SecondaryMap<Value, u32> {
        let mut counts = SecondaryMap::with_capacity(self.values.len());
        let reads = self.nodes.values().flat_map(|n| n.ins.iter().copied());
        for value in reads.chain(self.outputs.iter().map(|(_, v)| *v)) {
            counts[value] += 1;
        }
        counts
    }

    /// The nodes that read each value, in order, one entry per operand.
    pub fn users(&self) -> SecondaryMap<Value, Vec<Node>> {
        let mut users: SecondaryMap<Value, Vec<Node>> = SecondaryMap::with_capacity(self.values.len());
        for (node, data) in self.nodes.iter() {
            for &value in &data.ins {
                users[value].push(node);
            }
        }
        users
    }

    /// What a node is called in messages: its model name, else its id, with its op.
    pub fn describe(&self, node: Node) -> String {
        let data = &self.nodes[node];
        match &data.name {
            Some(name) => format!("{} `{name}`", data.op.name()),
            None => format!("{} {node}", data.op.name()),
        }
    }

    /// The names of dimensions that appear in the input types, in order of appearance.
    pub fn dim_names(&self) -> Vec<Arc<str>> {
        let mut names: Vec<Arc<str>> = Vec::new();
        for (_, value) in &self.inputs {
            for dim in &self.ty(*value).dims {
                if let Dim::Named(name) = dim
                    && !names.contains(name)
                {
                    names.push(name.clone());
                }
            }
        }
        names
    }

    /// The same graph with named dimensions replaced by sizes and every type inferred anew.
    ///
    /// `size` is asked for each name; `None` leaves the name in place.
    pub fn bind(&self, size: impl Fn(&str) -> Option<usize>) -> Result<Graph, Error> {
        let types: Vec<TensorType> = self
            .inputs
            .iter()
            .map(|(_, value)| {
                let mut ty = self.ty(*value).clone();
                for dim in &mut ty.dims {
                    if let Dim::Named(name) = dim
                        && let Some(n) = size(name)
                    {
                        *dim = Dim::Fixed(n);
                    }
                }
                ty
            })
            .collect();
        self.with_input_types(&types)
    }

    /// The same graph for other input types, every type inferred anew.
    ///
    /// Nodes that yield shapes already known become constants, and so do nodes computed from those
    /// alone, so that shapes calculated inside the model are known too.
    pub fn with_input_types(&self, types: &[TensorType]) -> Result<Graph, Error> {
        let mut edit = Edit::with_input_types(self, types)?;
        for (node, data) in self.nodes() {
            let ins = edit.map_all(&data.ins);
            let outs = match fold(edit.graph(), &data.op, &ins) {
                Some(tensors) => tensors.into_iter().map(|t| edit.builder().constant(t)).collect(),
                None => edit.builder().push(data.op.clone(), &ins, data.name.clone())?,
            };
            edit.replace(node, &outs)?;
        }
        edit.finish()
    }

    /// The same, and an `if` whose condition is known then is the branch that it takes, and a `loop` has no
    /// states that stay what they are.
    pub fn specialized(&self, types: &[TensorType]) -> Result<Graph, Error> {
        let mut graph = self.with_input_types(types)?;
        // What comes out of a graph within the graph is known better by then, and may be such a node itself. Each round
        // takes a level of them out, or a loop's states, so this ends.
        while let Some(opened) = graph.opened(types)? {
            graph = opened.with_input_types(types)?;
        }
        Ok(graph)
    }

    /// With simpler nodes in place of each `if` and `loop` for which there are; `None` if there are for none.
    fn opened(&self, types: &[TensorType]) -> Result<Option<Graph>, Error> {
        let is_control = |data: &NodeData| matches!(*data.op, Op::If(_) | Op::Loop(_));
        if !self.nodes().any(|(_, data)| is_control(data)) {
            return Ok(None);
        }
        let mut edit = Edit::with_input_types(self, types)?;
        let mut is_opened = false;
        for (node, data) in self.nodes() {
            let ins = edit.map_all(&data.ins);
            let simpler = match is_control(data) {
                true => data.op.simplify(edit.builder(), &ins)?,
                false => None,
            };
            is_opened |= simpler.is_some();
            let outs = match simpler {
                Some(outs) => outs,
                None => edit.builder().push(data.op.clone(), &ins, data.name.clone())?,
            };
            edit.replace(node, &outs)?;
        }
        Ok(if is_opened { Some(edit.finish()?) } else { None })
    }
}

/// The results of a node that yields a known shape, or is computed from small constants alone.
///
/// `None` if it is neither, if a result is large, or if the operands are not what the op takes.
pub fn fold(graph: &Graph, op: &Op, ins: &[Value]) -> Option<Vec<Tensor>> {
    fold_known(graph, op, ins, |value| graph.as_constant(value))
}

/// Like [`fold`], with what is known of values otherwise than by constants.
pub fn fold_known<'t>(
    graph: &Graph,
    op: &Op,
    ins: &[Value],
    known: impl Fn(Value) -> Option<&'t Tensor>,
) -> Option<Vec<Tensor>> {
    if let Op::ShapeOf(op) = op {
        return Some(vec![op.of(&graph.ty(*ins.first()?).as_shape()?)]);
    }
    let small = |&v: &Value| known(v).filter(|t| t.len() <= SHAPE_ARITHMETIC_ELEMENTS).cloned();
    let values: Vec<Tensor> = ins.iter().map(small).collect::<Option<_>>()?;
    if matches!(op, Op::Constant(_)) || !op.is_pure() || has_graphs(op) {
        return None;
    }
    // Sizes come from the operands' values too, so a small operand can ask for a large result.
    let mut known = op.clone();
    let mut rest: SmallVec<[Tensor; 4]> = values.iter().cloned().collect();
    resolve_late(&mut known, &mut rest, |t| Some(t.to_ints()));
    let types: Vec<TensorType> = rest.iter().map(Tensor::ty).collect();
    let results = known.infer(&types.iter().collect::<Vec<_>>()).ok()?;
    let is_small = |ty: &TensorType| ty.as_len().is_none_or(|n| n <= SHAPE_ARITHMETIC_ELEMENTS);
    if !results.iter().all(is_small) {
        return None;
    }
    let outs = interpret::eval_op(op, &values).ok()?;
    outs.iter().all(|t| t.len() <= SHAPE_ARITHMETIC_ELEMENTS).then_some(outs)
}

/// Whether an op holds graphs, so that its work is not bounded by its operands' sizes.
fn has_graphs(op: &Op) -> bool {
    let mut found = false;
    let mut visit = |_: &'static str, slot: crate::attrs::Slot<'_>| {
        found |= matches!(slot, crate::attrs::Slot::Graph(_));
        Ok(())
    };
    op.clone().attrs(&mut visit).expect("reading attributes cannot fail");
    found
}

/// Binding folds constants of at most this many elements: enough for any shape, too few to cost time.
const SHAPE_ARITHMETIC_ELEMENTS: usize = 1024;

/// The operands of `op` that hold late attributes, with the attribute's name.
pub fn late_operands(op: &Op) -> Vec<(&'static str, u32)> {
    let mut found = Vec::new();
    if let Op::Constant(_) | Op::Elementwise(_) = op {
        return found;
    }
    let mut op = op.clone();
    let mut visit = |name: &'static str, slot: crate::attrs::Slot<'_>| {
        if let crate::attrs::Slot::Late(Late::Operand(index)) = slot {
            found.push((name, *index));
        }
        Ok(())
    };
    op.attrs(&mut visit).expect("reading attributes cannot fail");
    found
}

/// Puts known integers in place of late operands and drops those operands.
///
/// `value_of` gives an operand's value, if it is known.
pub(crate) fn resolve_late<T: Clone>(
    op: &mut Op,
    ins: &mut SmallVec<[T; 4]>,
    value_of: impl Fn(&T) -> Option<Vec<i64>>,
) {
    let mut dropped: Vec<u32> = Vec::new();
    let known: Vec<(u32, Vec<i64>)> = late_operands(op)
        .into_iter()
        .filter_map(|(_, i)| Some((i, value_of(ins.get(i as usize)?)?)))
        .collect();
    if known.is_empty() {
        return;
    }
    let mut fill = |_: &'static str, slot: crate::attrs::Slot<'_>| {
        if let crate::attrs::Slot::Late(late) = slot
            && let Late::Operand(index) = *late
            && let Some((_, ints)) = known.iter().find(|(i, _)| *i == index)
        {
            *late = Late::Known(ints.clone());
            dropped.push(index);
        }
        Ok(())
    };
    op.attrs(&mut fill).expect("filling attributes cannot fail");
    dropped.sort_unstable();
    dropped.dedup();
    let mut shift = |_: &'static str, slot: crate::attrs::Slot<'_>| {
        if let crate::attrs::Slot::Late(Late::Operand(index)) = slot {
            *index -= dropped.iter().filter(|&&d| d < *index).count() as u32;
        }
        Ok(())
    };
    op.attrs(&mut shift).expect("renumbering attributes cannot fail");
    let mut position = 0;
    ins.retain(|_| {
        position += 1;
        !dropped.contains(&(position - 1))
    });
}

impl Value {
    /// The id of the value at this position of the order of definition.
    pub fn at(index: usize) -> Value {
        Value::new(index)
    }
}

impl Node {
    /// The id of the node at this position of the order.
    pub fn at(index: usize) -> Node {
        Node::new(index)
    }
}
