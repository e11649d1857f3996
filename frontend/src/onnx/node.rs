//! What a node's importer works with: its operands, its attributes, and a builder that folds shapes.
//!
//! Every attribute an importer asks for is marked as read, and one that nobody read is an error: it
//! would change the result in a way nobody looked at.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use windlass_ir::graph::{Values, fold_known};
use windlass_ir::{DType, Graph, Late, Op, ScalarFn, Tensor, TensorType, Value, normalize_axis, ops};

use super::import::{Body, Importer};
use super::problem::{Problem, invalid, unsupported};
use super::proto::attribute_proto::AttributeType;
use super::proto::{AttributeProto, GraphProto, NodeProto};
use super::{four_bits, tensor};

/// A node being imported.
pub(crate) struct NodeCx<'i, 'm> {
    importer: &'i mut Importer<'m>,
    node: &'m NodeProto,
    name: Option<Arc<str>>,
    version: u32,
    ins: Vec<Option<Value>>,
    attributes: Vec<(Cow<'m, AttributeProto>, bool)>,
}

/// What importing gives.
pub(crate) type Imported<T = Vec<Value>> = Result<T, Problem>;

impl<'i, 'm> NodeCx<'i, 'm> {
    pub fn new(
        importer: &'i mut Importer<'m>,
        node: &'m NodeProto,
        name: Option<Arc<str>>,
        version: u32,
        ins: Vec<Option<Value>>,
        attributes: Vec<Cow<'m, AttributeProto>>,
    ) -> NodeCx<'i, 'm> {
        let attributes = attributes.into_iter().map(|a| (a, false)).collect();
        NodeCx { importer, node, name, version, ins, attributes }
    }

    /// Fails if an attribute was never read.
    pub fn finish(&self) -> Imported<()> {
        match self.attributes.iter().find(|(_, read)| !read) {
            None => Ok(()),
            Some((attribute, _)) => unsupported!("attribute `{}`", attribute.name()),
        }
    }

    /// The operator set the node is written in.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The operator.
    pub fn op_type(&self) -> &'m str {
        self.node.op_type()
    }

    /// How many results the node names; the last one named counts those before it.
    pub fn outputs(&self) -> usize {
        self.node.output.len()
    }

    /// Whether the node names a result of this index.
    pub fn wants_output(&self, index: usize) -> bool {
        self.node.output.get(index).is_some_and(|name| !name.is_empty())
    }

    // Operands.

    /// How many operands the node has, absent ones included.
    pub fn input_count(&self) -> usize {
        self.ins.len()
    }

    /// An operand that the operator requires.
    pub fn input(&self, index: usize) -> Imported<Value> {
        match self.optional(index) {
            Some(value) => Ok(value),
            None => invalid!("operand {index} is missing"),
        }
    }

    /// An operand that may be absent.
    pub fn optional(&self, index: usize) -> Option<Value> {
        self.ins.get(index).copied().flatten()
    }

    /// All operands, none of which may be absent.
    pub fn inputs(&self) -> Imported<Vec<Value>> {
        (0..self.ins.len()).map(|i| self.input(i)).collect()
    }

    /// A value's type.
    pub fn ty(&self, value: Value) -> &TensorType {
        self.importer.builder_ref().ty(value)
    }

    /// A value's element type.
    pub fn dtype_of(&self, value: Value) -> DType {
        self.ty(value).dtype
    }

    /// A value's rank.
    pub fn rank(&self, value: Value) -> usize {
        self.ty(value).rank()
    }

    /// The tensor a value is, if that is known.
    pub fn constant(&self, value: Value) -> Option<&Tensor> {
        self.importer.known(value)
    }

    // Attributes.

    fn attribute(&mut self, name: &str, ty: AttributeType) -> Imported<Option<&AttributeProto>> {
        let Some((attribute, read)) = self.attributes.iter_mut().find(|(a, _)| a.name() == name) else {
            return Ok(None);
        };
        *read = true;
        // Files older than IR version 2 leave the type out.
        let found = attribute.r#type();
        if found != ty && found != AttributeType::Undefined {
            invalid!("attribute `{name}` is of type {}, not {}", found.as_str_name(), ty.as_str_name());
        }
        Ok(Some(attribute))
    }

    /// Marks an attribute as read that has no influence on results.
    pub fn ignore(&mut self, name: &str) {
        if let Some((_, read)) = self.attributes.iter_mut().find(|(a, _)| a.name() == name) {
            *read = true;
        }
    }

    /// Whether an attribute is given; does not mark it as read.
    pub fn has(&self, name: &str) -> bool {
        self.attributes.iter().any(|(a, _)| a.name() == name)
    }

    /// The names of the attributes that are given.
    pub fn attribute_names(&self) -> Vec<String> {
        self.attributes.iter().map(|(a, _)| a.name().to_string()).collect()
    }

    pub fn int(&mut self, name: &str) -> Imported<Option<i64>> {
        Ok(self.attribute(name, AttributeType::Int)?.map(AttributeProto::i))
    }

    pub fn int_or(&mut self, name: &str, default: i64) -> Imported<i64> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    /// An integer that is a truth value.
    pub fn bool_or(&mut self, name: &str, default: bool) -> Imported<bool> {
        Ok(self.int(name)?.map_or(default, |i| i != 0))
    }

    pub fn ints(&mut self, name: &str) -> Imported<Option<Vec<i64>>> {
        Ok(self.attribute(name, AttributeType::Ints)?.map(|a| a.ints.clone()))
    }

    pub fn float(&mut self, name: &str) -> Imported<Option<f64>> {
        Ok(self.attribute(name, AttributeType::Float)?.map(|a| f64::from(a.f())))
    }

    pub fn float_or(&mut self, name: &str, default: f32) -> Imported<f64> {
        Ok(self.float(name)?.unwrap_or(f64::from(default)))
    }

    pub fn floats(&mut self, name: &str) -> Imported<Option<Vec<f64>>> {
        let floats = self.attribute(name, AttributeType::Floats)?;
        Ok(floats.map(|a| a.floats.iter().map(|&x| f64::from(x)).collect()))
    }

    pub fn string(&mut self, name: &str) -> Imported<Option<String>> {
        match self.attribute(name, AttributeType::String)?.map(|a| String::from_utf8(a.s().to_vec())) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text)),
            Some(Err(_)) => invalid!("attribute `{name}` is not UTF-8"),
        }
    }

    pub fn string_or(&mut self, name: &str, default: &str) -> Imported<String> {
        Ok(self.string(name)?.unwrap_or_else(|| default.to_string()))
    }

    pub fn strings(&mut self, name: &str) -> Imported<Option<Vec<String>>> {
        let Some(attribute) = self.attribute(name, AttributeType::Strings)? else { return Ok(None) };
        let texts: Result<Vec<String>, _> =
            attribute.strings.iter().map(|s| String::from_utf8(s.to_vec())).collect();
        match texts {
            Ok(texts) => Ok(Some(texts)),
            Err(_) => invalid!("attribute `{name}` is not UTF-8"),
        }
    }

    /// An element type.
    pub fn dtype(&mut self, name: &str) -> Imported<Option<DType>> {
        self.int(name)?.map(|i| tensor::dtype(i32::try_from(i).unwrap_or(-1))).transpose()
    }

    pub fn tensor(&mut self, name: &str) -> Imported<Option<Tensor>> {
        let source = self.importer.source();
        match self.attribute(name, AttributeType::Tensor)?.map(|a| a.t.as_ref()) {
            None => Ok(None),
            Some(Some(proto)) => Ok(Some(tensor::decode(proto, source)?)),
            Some(None) => invalid!("attribute `{name}` holds no tensor"),
        }
    }

    pub fn sparse_tensor(&mut self, name: &str) -> Imported<Option<Tensor>> {
        let source = self.importer.source();
        match self.attribute(name, AttributeType::SparseTensor)?.map(|a| a.sparse_tensor.as_ref()) {
            None => Ok(None),
            Some(Some(proto)) => Ok(Some(tensor::decode_sparse(proto, source)?)),
            Some(None) => invalid!("attribute `{name}` holds no tensor"),
        }
    }

    /// A graph that the operator requires.
    pub fn graph(&mut self, name: &str) -> Imported<&'m GraphProto> {
        let Some((attribute, read)) = self.attributes.iter_mut().find(|(a, _)| a.name() == name) else {
            invalid!("attribute `{name}` is missing");
        };
        *read = true;
        let Cow::Borrowed(attribute) = *attribute else {
            unsupported!("attribute `{name}` is a graph passed to a function");
        };
        match &attribute.g {
            Some(graph) => Ok(graph),
            None => invalid!("attribute `{name}` holds no graph"),
        }
    }

    /// Imports a graph of this node for parameters of these types.
    pub fn body(&mut self, graph: &'m GraphProto, types: &[TensorType]) -> Imported<Body> {
        let body = self.importer.import_body(graph, types);
        let name = self.name.clone();
        self.importer.builder().set_name(name);
        body
    }

    /// Copies a graph's nodes, `ins` standing for its inputs; gives what stands for its outputs.
    pub fn inline(&mut self, graph: &Graph, ins: &[Value]) -> Imported {
        let inputs = graph.inputs().iter().map(|(_, v)| *v);
        let mut map: HashMap<Value, Value> = inputs.zip(ins.iter().copied()).collect();
        for (_, data) in graph.nodes() {
            let ins: Vec<Value> = data.ins.iter().map(|v| map[v]).collect();
            let outs = self.push_all(data.op.clone(), &ins)?;
            map.extend(data.outs.iter().copied().zip(outs));
        }
        Ok(graph.outputs().iter().map(|(_, v)| map[v]).collect())
    }

    /// An axis attribute as an index into so many dimensions.
    pub fn axis(&mut self, name: &str, default: i64, rank: usize) -> Imported<usize> {
        let axis = self.int_or(name, default)?;
        match normalize_axis(axis, rank) {
            Some(axis) => Ok(axis),
            None => invalid!("attribute `{name}` is {axis}, outside rank {rank}"),
        }
    }

    // Building.

    /// Adds a node, or constants if all its operands are small ones. What is computed from weights stays a node, so that
    /// they can be trained, and is known none the less.
    pub fn push_all(&mut self, op: impl Into<Arc<Op>>, ins: &[Value]) -> Imported<Values> {
        let (op, name) = (op.into(), self.name.clone());
        let graph = self.importer.builder_ref().graph();
        let Some(tensors) = fold_known(graph, &op, ins, |value| self.importer.known(value)) else {
            return Ok(self.importer.builder().push(op, ins, name)?);
        };
        let is_float = tensors.iter().all(|tensor| tensor.dtype().is_float());
        if is_float && ins.iter().any(|&value| self.importer.is_weight(value)) {
            let outs = self.importer.builder().push(op, ins, name)?;
            outs.iter().zip(tensors).for_each(|(&out, tensor)| self.importer.learn(out, tensor));
            return Ok(outs);
        }
        let builder = self.importer.builder();
        Ok(tensors.into_iter().map(|t| builder.constant(t)).collect())
    }

    /// [`Self::push_all`] for an op of one result.
    pub fn push(&mut self, op: impl Into<Arc<Op>>, ins: &[Value]) -> Imported<Value> {
        Ok(self.push_all(op, ins)?[0])
    }

    /// The results of an op as those of the node.
    pub fn push_whole(&mut self, op: impl Into<Arc<Op>>, ins: &[Value]) -> Imported {
        Ok(self.push_all(op, ins)?.to_vec())
    }

    /// Applies a scalar function over broadcast operands.
    pub fn map(&mut self, f: ScalarFn, ins: &[Value]) -> Imported<Value> {
        self.push(ops::Elementwise { f }, ins)
    }

    pub fn cast(&mut self, value: Value, to: DType) -> Imported<Value> {
        match self.dtype_of(value) == to {
            true => Ok(value),
            false => self.map(ScalarFn::Cast(to), &[value]),
        }
    }

    pub fn add_constant(&mut self, tensor: Tensor) -> Value {
        self.importer.builder().constant(tensor)
    }

    /// A rank-1 constant of integers.
    pub fn int_list(&mut self, ints: &[i64]) -> Value {
        self.add_constant(Tensor::from_ints(ints))
    }

    pub fn scalar(&mut self, dtype: DType, value: f64) -> Value {
        self.importer.builder().scalar(dtype, value)
    }

    /// A rank-0 constant of the element type of `like`.
    pub fn scalar_like(&mut self, like: Value, value: f64) -> Value {
        self.importer.builder().scalar_like(like, value)
    }

    /// `f` of a value and a constant of its type.
    pub fn map_constant(&mut self, f: ScalarFn, value: Value, constant: f64) -> Imported<Value> {
        let constant = self.scalar_like(value, constant);
        self.map(f, &[value, constant])
    }

    pub fn reshape(&mut self, value: Value, shape: &[i64], copy_zero: bool) -> Imported<Value> {
        self.push(ops::Reshape { shape: shape.into(), copy_zero }, &[value])
    }

    /// Inserts dimensions of 1, at these positions of the result.
    pub fn unsqueeze(&mut self, value: Value, axes: &[i64]) -> Imported<Value> {
        self.push(ops::Unsqueeze { axes: axes.into() }, &[value])
    }

    /// Removes dimensions of 1.
    pub fn squeeze(&mut self, value: Value, axes: &[i64]) -> Imported<Value> {
        match axes.is_empty() {
            true => Ok(value),
            false => self.push(ops::Squeeze { axes: axes.into() }, &[value]),
        }
    }

    /// A tensor of integers of 4 bits from a vector of bytes that hold two each.
    pub fn unpack(&mut self, bytes: Value, shape: &[usize], signed: bool) -> Imported<Value> {
        Ok(four_bits::unpack(self.importer.builder(), bytes, shape, signed)?)
    }

    /// The first positions along a dimension.
    pub fn leading(&mut self, value: Value, axis: usize, count: usize) -> Imported<Value> {
        match self.ty(value).dims[axis].as_fixed() == Some(count) {
            true => Ok(value),
            false => Ok(four_bits::leading(self.importer.builder(), value, axis, count)?),
        }
    }

    /// A value's sizes, as a tensor.
    pub fn shape_of(&mut self, value: Value) -> Imported<Value> {
        self.push(ops::ShapeOf, &[value])
    }

    /// Gives a value the sizes that another had.
    pub fn reshape_like(&mut self, value: Value, sizes: Value) -> Imported<Value> {
        self.push(ops::Reshape { shape: Late::Operand(1), copy_zero: false }, &[value, sizes])
    }
}

/// Appends an operand that holds a late attribute.
pub(crate) fn late(ins: &mut Vec<Value>, value: Value) -> Late {
    ins.push(value);
    Late::Operand(ins.len() as u32 - 1)
}

/// A late attribute from an operand that may be absent: then it is an empty list.
pub(crate) fn late_or_empty(ins: &mut Vec<Value>, value: Option<Value>) -> Late {
    value.map_or_else(Late::default, |value| late(ins, value))
}
