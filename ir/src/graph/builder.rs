//! Building graphs: every node is type-checked as it is pushed.

use std::sync::Arc;

use cranelift_entity::packed_option::PackedOption;
use cranelift_entity::{PrimaryMap, SecondaryMap};

use super::stand_ins::StandIns;
use super::{Def, Graph, Node, NodeData, Value, ValueData, Values, resolve_late};
use crate::dtype::DType;
use crate::error::Error;
use crate::limits::Limits;
use crate::ops::{self, Op};
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// Builds a [`Graph`].
///
/// ```
/// use windlass_ir::{Builder, DType, ScalarFn, TensorType};
///
/// let mut b = Builder::new("double");
/// let x = b.input("x", TensorType::fixed(DType::F32, &[4]));
/// let y = b.map(ScalarFn::Add, &[x, x])?;
/// b.output("y", y);
/// let graph = b.finish()?;
/// assert_eq!(graph.outputs().len(), 1);
/// # Ok::<(), windlass_ir::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Builder {
    graph: Graph,
    limits: Limits,
    /// The name given to nodes pushed by the convenience methods.
    name: Option<Arc<str>>,
    stand_ins: StandIns,
}

/// What errors call a node.
fn describe(op: &Op, name: Option<&str>, node: Node) -> String {
    match name {
        Some(name) => format!("{} `{name}`", op.name()),
        None => format!("{} {node}", op.name()),
    }
}

impl Builder {
    /// An empty graph under construction.
    pub fn new(name: &str) -> Builder {
        Builder {
            graph: Graph {
                name: name.to_string(),
                nodes: PrimaryMap::new(),
                values: PrimaryMap::new(),
                inputs: Vec::new(),
                outputs: Vec::new(),
            },
            limits: Limits::default(),
            name: None,
            stand_ins: StandIns::default(),
        }
    }

    /// Makes room for as many nodes and values as a graph has.
    pub(super) fn reserve(&mut self, like: &Graph) {
        self.graph.nodes.reserve(like.nodes.len());
        self.graph.values.reserve(like.values.len());
    }

    /// Replaces the default limits.
    pub fn with_limits(mut self, limits: Limits) -> Builder {
        self.limits = limits;
        self
    }

    /// What has been built so far.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// A value's type.
    pub fn ty(&self, value: Value) -> &TensorType {
        self.graph.ty(value)
    }

    /// Names the nodes that the convenience methods push from now on after a node of the model.
    pub fn set_name(&mut self, name: Option<Arc<str>>) {
        self.name = name;
    }

    /// Adds a graph input.
    pub fn input(&mut self, name: &str, ty: TensorType) -> Value {
        let index = self.graph.inputs.len() as u32;
        let value = self.graph.values.push(ValueData { def: Def::Input(index), ty: Arc::new(ty) });
        self.graph.inputs.push((name.to_string(), value));
        value
    }

    /// Adds a graph output.
    pub fn output(&mut self, name: &str, value: Value) {
        self.graph.outputs.push((name.to_string(), value));
    }

    /// Adds a node and returns its results.
    ///
    /// An operand that holds a late attribute and is a constant becomes the attribute's value.
    pub fn push(
        &mut self,
        op: impl Into<Arc<Op>>,
        ins: &[Value],
        name: Option<Arc<str>>,
    ) -> Result<Values, Error> {
        let mut op: Arc<Op> = op.into();
        let mut ins = Values::from_slice(ins);
        let node = self.graph.nodes.next_key();
        if self.graph.tells_attributes(&op, &ins) {
            let graph = &self.graph;
            resolve_late(Arc::make_mut(&mut op), &mut ins, |&v| Some(graph.as_constant(v)?.to_ints()));
        }
        let violation = |violation| Error::Infer { node: describe(&op, name.as_deref(), node), violation };
        let in_types: Vec<&TensorType> = ins.iter().map(|&v| self.graph.ty(v)).collect();
        let types = op.infer(&in_types).map_err(violation)?;
        self.limits.check_node(self.graph.nodes.len(), &types, || describe(&op, name.as_deref(), node))?;
        let mut outs = Values::new();
        for (index, ty) in types.into_iter().enumerate() {
            let def = Def::Output { node, index: index as u32 };
            outs.push(self.graph.values.push(ValueData { def, ty: Arc::new(ty) }));
        }
        self.graph.nodes.push(NodeData { op, ins, outs: Values::from_slice(&outs), name });
        Ok(outs)
    }

    /// Adds a node of another graph, with these operands, and returns its results, which have the types they have there.
    pub(super) fn push_copy(&mut self, from: &Graph, data: &NodeData, ins: Values) -> Values {
        let node = self.graph.nodes.next_key();
        let mut outs = Values::new();
        for (index, &out) in data.outs.iter().enumerate() {
            let def = Def::Output { node, index: index as u32 };
            outs.push(self.graph.values.push(ValueData { def, ty: from.values[out].ty.clone() }));
        }
        let (op, name) = (data.op.clone(), data.name.clone());
        self.graph.nodes.push(NodeData { op, ins, outs: Values::from_slice(&outs), name });
        outs
    }

    /// Adds a node of one result.
    pub fn push1(&mut self, op: impl Into<Arc<Op>>, ins: &[Value]) -> Result<Value, Error> {
        let name = self.name.clone();
        Ok(self.push(op, ins, name)?[0])
    }

    /// Adds a constant.
    pub fn constant(&mut self, value: Tensor) -> Value {
        let ty = Arc::new(value.ty());
        let node = self.graph.nodes.next_key();
        let out = self.graph.values.push(ValueData { def: Def::Output { node, index: 0 }, ty });
        let op = Arc::new(Op::Constant(ops::Constant { value }));
        self.graph.nodes.push(NodeData {
            op,
            ins: Values::new(),
            outs: Values::from_slice(&[out]),
            name: None,
        });
        out
    }

    /// A rank-0 constant of the given type, rounded from f64.
    pub fn scalar(&mut self, dtype: DType, value: f64) -> Value {
        self.constant(Tensor::from_f64s(dtype, &[], &[value]))
    }

    /// A rank-0 constant of the type of `like`.
    pub fn scalar_like(&mut self, like: Value, value: f64) -> Value {
        let dtype = self.ty(like).dtype;
        self.scalar(dtype, value)
    }

    /// Applies a scalar function over broadcast operands.
    pub fn map(&mut self, f: ScalarFn, ins: &[Value]) -> Result<Value, Error> {
        self.push1(ops::Elementwise { f }, ins)
    }

    /// Converts to another element type; does nothing if it is that already.
    pub fn cast(&mut self, value: Value, to: DType) -> Result<Value, Error> {
        match self.ty(value).dtype == to {
            true => Ok(value),
            false => self.map(ScalarFn::Cast(to), &[value]),
        }
    }

    /// The same elements under another shape; does nothing if it is that already.
    pub fn reshape(&mut self, value: Value, shape: &[usize]) -> Result<Value, Error> {
        match *self.ty(value).shape() == *shape {
            true => Ok(value),
            false => self.push1(ops::Reshape::to(shape), &[value]),
        }
    }

    /// Dimensions in another order; does nothing if that is the order already.
    pub fn transpose(&mut self, value: Value, perm: &[usize]) -> Result<Value, Error> {
        match perm.iter().copied().eq(0..perm.len()) {
            true => Ok(value),
            false => self.push1(ops::Transpose::by(perm), &[value]),
        }
    }

    /// Repeated along dimensions of size 1 up to a shape; does nothing if it has that already.
    pub fn broadcast(&mut self, value: Value, shape: &[usize]) -> Result<Value, Error> {
        match *self.ty(value).shape() == *shape {
            true => Ok(value),
            false => self.push1(ops::Broadcast::to(shape), &[value]),
        }
    }

    /// Lets another value, which equals it and does not depend on it, stand in for one: in the finished graph, whatever
    /// reads the one reads the other.
    pub fn stand_in(&mut self, value: Value, other: Value) {
        debug_assert_eq!(self.ty(value), self.ty(other));
        self.stand_ins.add(value, other);
    }

    /// Copies another graph's nodes with `ins` for its inputs, and returns what stands for its outputs.
    pub fn inline(&mut self, graph: &Graph, ins: &[Value]) -> Result<Values, Error> {
        let outputs: Values = graph.outputs.iter().map(|(_, v)| *v).collect();
        self.inline_values(graph, ins, &outputs)
    }

    /// The same, for any values of the other graph.
    pub(crate) fn inline_values(
        &mut self,
        graph: &Graph,
        ins: &[Value],
        values: &[Value],
    ) -> Result<Values, Error> {
        if ins.len() != graph.inputs.len() {
            return Err(Error::InputCount { expected: graph.inputs.len(), found: ins.len() });
        }
        let mut map: SecondaryMap<Value, PackedOption<Value>> =
            SecondaryMap::with_capacity(graph.values.len());
        for ((_, old), &new) in graph.inputs.iter().zip(ins) {
            map[*old] = new.into();
        }
        let at = |map: &SecondaryMap<Value, PackedOption<Value>>, old: Value| {
            map[old].expect("operands are copied before their users")
        };
        for data in graph.nodes.values() {
            let ins: Values = data.ins.iter().map(|&v| at(&map, v)).collect();
            let outs = self.push(data.op.clone(), &ins, data.name.clone())?;
            for (&old, new) in data.outs.iter().zip(outs) {
                map[old] = new.into();
            }
        }
        Ok(values.iter().map(|&v| at(&map, v)).collect())
    }

    /// The finished graph.
    pub fn finish(self) -> Result<Graph, Error> {
        if self.graph.outputs.is_empty() {
            return Err(Error::NoOutputs { graph: self.graph.name });
        }
        Ok(self.stand_ins.settle(self.graph))
    }

    /// The graph as it is, for code that adds outputs afterwards.
    pub(super) fn finish_unchecked(self) -> Graph {
        self.graph
    }
}
