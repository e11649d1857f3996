//! From a graph to an ONNX file, for looking at a graph in other tools and for exchanging it.
//!
//! The inverse of importing, in operator set [`VERSION`]: an op that names an ONNX operator is written
//! attribute by attribute, an irregular one by its arm in `ops.rs`, a scalar function by its row in
//! `scalar.rs`. Late attributes become operands. What ONNX has no operator for is listed, all at once.

mod ops;
mod scalar;

use std::collections::{HashMap, HashSet};

use prost::Message;
use windlass_ir::graph::{Def, NodeData};
use windlass_ir::{Dim, Graph, Late, Op, Tensor, TensorType, Value};

use super::proto::attribute_proto::AttributeType;
use super::proto::tensor_shape_proto::{Dimension, dimension};
use super::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, type_proto,
};
use super::tensor;
use crate::error::{Error, Unsupported};

/// The operator set that graphs are written in.
pub const VERSION: u32 = 23;

/// The version of the file format that came with it.
const IR_VERSION: i64 = 11;

/// The bytes of an ONNX file that computes what a graph does.
///
/// # Errors
/// If the graph holds ops that ONNX has no operator for: all of them are listed.
pub fn to_bytes(graph: &Graph) -> Result<Vec<u8>, Error> {
    let model = ModelProto {
        ir_version: Some(IR_VERSION),
        producer_name: Some("windlass".to_string()),
        producer_version: Some(env!("CARGO_PKG_VERSION").to_string()),
        opset_import: vec![OperatorSetIdProto { domain: Some(String::new()), version: Some(VERSION.into()) }],
        graph: Some(export(graph)?),
        ..ModelProto::default()
    };
    Ok(model.encode_to_vec())
}

fn export(graph: &Graph) -> Result<GraphProto, Error> {
    let mut exporter = Exporter::new(graph);
    let mut unsupported = Vec::new();
    for (node, data) in graph.nodes() {
        exporter.prefix = data.name.as_deref().unwrap_or("").to_string();
        if let Err(reason) = exporter.export_node(data) {
            unsupported.push(Unsupported { subject: graph.describe(node), reason });
        }
    }
    if !unsupported.is_empty() {
        return Err(Error::Unwritable(unsupported));
    }
    for (name, value) in graph.outputs() {
        let own = exporter.name(*value);
        if own != *name {
            exporter.node("Identity", vec![own], vec![name.clone()], Vec::new());
        }
    }
    let info = |(name, value): &(String, Value)| value_info(name, graph.ty(*value));
    Ok(GraphProto {
        name: Some(graph.name.clone()),
        node: exporter.nodes,
        initializer: exporter.initializers,
        input: graph.inputs().iter().map(info).collect(),
        output: graph.outputs().iter().map(info).collect(),
        ..GraphProto::default()
    })
}

fn value_info(name: &str, ty: &TensorType) -> ValueInfoProto {
    let dim = |dim: &Dim| Dimension {
        denotation: None,
        value: match dim {
            Dim::Fixed(n) => Some(dimension::Value::DimValue(*n as i64)),
            Dim::Named(name) => Some(dimension::Value::DimParam(name.to_string())),
            Dim::Unknown => None,
        },
    };
    let shape = TensorShapeProto { dim: ty.dims.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: Some(tensor::data_type(ty.dtype)), shape: Some(shape) };
    ValueInfoProto {
        name: Some(name.to_string()),
        r#type: Some(TypeProto { denotation: None, value: Some(type_proto::Value::TensorType(tensor)) }),
        ..ValueInfoProto::default()
    }
}

/// A graph being written.
struct Exporter<'g> {
    graph: &'g Graph,
    names: HashMap<Value, String>,
    taken: HashSet<String>,
    /// The model's name of the node being written; its nodes are called after it.
    prefix: String,
    /// Names of nodes written so far.
    node_names: HashSet<String>,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
}

impl<'g> Exporter<'g> {
    fn new(graph: &'g Graph) -> Exporter<'g> {
        let mut names = HashMap::new();
        let mut taken = HashSet::new();
        for (name, value) in graph.inputs() {
            names.insert(*value, name.clone());
            taken.insert(name.clone());
        }
        // A result that is an output has the output's name; if it is several, that of the first.
        for (name, value) in graph.outputs() {
            let computed = matches!(graph.def(*value), Def::Output { .. });
            if taken.insert(name.clone()) && computed {
                names.entry(*value).or_insert_with(|| name.clone());
            }
        }
        Exporter {
            graph,
            names,
            taken,
            node_names: HashSet::new(),
            prefix: String::new(),
            nodes: Vec::new(),
            initializers: Vec::new(),
        }
    }

    /// A name that no value has yet.
    fn fresh(&mut self, stem: &str) -> String {
        let stem = if stem.is_empty() { "value" } else { stem };
        distinct(&mut self.taken, stem)
    }

    fn name(&mut self, value: Value) -> String {
        if let Some(name) = self.names.get(&value) {
            return name.clone();
        }
        let prefix = self.prefix.clone();
        let name = self.fresh(&prefix);
        self.names.insert(value, name.clone());
        name
    }

    fn node(&mut self, op: &str, input: Vec<String>, output: Vec<String>, attribute: Vec<AttributeProto>) {
        // Names of nodes are distinct, for onnxruntime too, but many may have none.
        let name = match self.prefix.as_str() {
            "" => String::new(),
            prefix => distinct(&mut self.node_names, prefix),
        };
        let name = Some(name);
        let op_type = Some(op.to_string());
        self.nodes.push(NodeProto { name, op_type, input, output, attribute, ..NodeProto::default() });
    }

    /// A node of one result, which gets a new name.
    fn apply(&mut self, op: &str, ins: Vec<String>, attributes: Vec<AttributeProto>) -> String {
        let prefix = self.prefix.clone();
        let out = self.fresh(&prefix);
        self.node(op, ins, vec![out.clone()], attributes);
        out
    }

    fn initializer(&mut self, value: &Tensor) -> String {
        let name = self.fresh("constant");
        self.initializers.push(tensor::encode(value, &name));
        name
    }

    fn int_list(&mut self, ints: &[i64]) -> String {
        self.initializer(&Tensor::from_ints(ints))
    }

    /// The operand for a late attribute; a scalar operand becomes a list of one.
    fn late(&mut self, late: &Late, data: &NodeData) -> String {
        match late {
            Late::Known(ints) => self.int_list(ints),
            Late::Operand(index) => {
                let value = data.ins[*index as usize];
                let name = self.name(value);
                match self.graph.ty(value).rank() {
                    0 => {
                        let axes = self.int_list(&[0]);
                        self.apply("Unsqueeze", vec![name, axes], Vec::new())
                    }
                    _ => name,
                }
            }
        }
    }

    /// Like [`Self::late`]; an empty list is an operand that is left out.
    fn late_or_absent(&mut self, late: &Late, data: &NodeData) -> String {
        match late {
            Late::Known(ints) if ints.is_empty() => String::new(),
            _ => self.late(late, data),
        }
    }

    fn export_node(&mut self, data: &NodeData) -> Result<(), String> {
        if let Op::Constant(op) = &*data.op {
            let name = self.name(data.outs[0]);
            self.initializers.push(tensor::encode(&op.value, &name));
            return Ok(());
        }
        let ins: Vec<String> = data.ins.iter().map(|&v| self.name(v)).collect();
        let outs: Vec<String> = data.outs.iter().map(|&v| self.name(v)).collect();
        ops::export_op(self, data, ins, outs)
    }
}

/// This name, or one made of it, that is not taken, and now is.
fn distinct(taken: &mut HashSet<String>, stem: &str) -> String {
    let mut name = stem.to_string();
    let mut count = taken.len();
    while !taken.insert(name.clone()) {
        name = format!("{stem}.{count}");
        count += 1;
    }
    name
}

fn attribute(name: &str, ty: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.to_string()), r#type: Some(ty as i32), ..AttributeProto::default() }
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i: Some(i), ..attribute(name, AttributeType::Int) }
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { ints: ints.to_vec(), ..attribute(name, AttributeType::Ints) }
}

fn float(name: &str, f: f64) -> AttributeProto {
    AttributeProto { f: Some(f as f32), ..attribute(name, AttributeType::Float) }
}

fn floats(name: &str, floats: &[f64]) -> AttributeProto {
    let floats = floats.iter().map(|&x| x as f32).collect();
    AttributeProto { floats, ..attribute(name, AttributeType::Floats) }
}

fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto { s: Some(s.to_string().into()), ..attribute(name, AttributeType::String) }
}
