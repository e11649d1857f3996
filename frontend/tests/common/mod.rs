//! Building small ONNX models.

#![expect(dead_code, reason = "each test file uses a part of this")]

use prost::Message;
use windlass_frontend::onnx::proto::attribute_proto::AttributeType;
use windlass_frontend::onnx::proto::tensor_proto::DataType;
use windlass_frontend::onnx::proto::tensor_shape_proto::{Dimension, dimension};
use windlass_frontend::onnx::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use windlass_frontend::onnx::{Model, from_bytes};
use windlass_frontend::{Error, Unsupported};
use windlass_ir::{Limits, Tensor, interpret, verify};

/// A size: a number or a name.
pub enum Size {
    Of(i64),
    Named(&'static str),
    Unknown,
}

pub fn value(name: &str, ty: DataType, sizes: &[Size]) -> ValueInfoProto {
    let dim = |size: &Size| Dimension {
        denotation: None,
        value: match size {
            Size::Of(n) => Some(dimension::Value::DimValue(*n)),
            Size::Named(name) => Some(dimension::Value::DimParam((*name).to_string())),
            Size::Unknown => None,
        },
    };
    let tensor = type_proto::Tensor {
        elem_type: Some(ty as i32),
        shape: Some(TensorShapeProto { dim: sizes.iter().map(dim).collect() }),
    };
    ValueInfoProto {
        name: Some(name.to_string()),
        r#type: Some(TypeProto { denotation: None, value: Some(type_proto::Value::TensorType(tensor)) }),
        ..ValueInfoProto::default()
    }
}

pub fn floats(name: &str, sizes: &[i64]) -> ValueInfoProto {
    let sizes: Vec<Size> = sizes.iter().map(|&n| Size::Of(n)).collect();
    value(name, DataType::Float, &sizes)
}

pub fn ints(name: &str, sizes: &[i64]) -> ValueInfoProto {
    let sizes: Vec<Size> = sizes.iter().map(|&n| Size::Of(n)).collect();
    value(name, DataType::Int64, &sizes)
}

/// A value of whatever type it turns out to have.
pub fn any(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: Some(name.to_string()), ..ValueInfoProto::default() }
}

/// Names separated by spaces; `_` stands for an operand that is left out.
fn names(list: &str) -> Vec<String> {
    list.split_whitespace().map(|name| if name == "_" { String::new() } else { name.to_string() }).collect()
}

pub fn node(op: &str, ins: &str, outs: &str, attributes: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: Some(op.to_string()),
        input: names(ins),
        output: names(outs),
        attribute: attributes,
        ..NodeProto::default()
    }
}

fn attribute(name: &str, ty: AttributeType) -> AttributeProto {
    AttributeProto { name: Some(name.to_string()), r#type: Some(ty as i32), ..AttributeProto::default() }
}

pub fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i: Some(i), ..attribute(name, AttributeType::Int) }
}

pub fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { f: Some(f), ..attribute(name, AttributeType::Float) }
}

pub fn int_list(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { ints: ints.to_vec(), ..attribute(name, AttributeType::Ints) }
}

pub fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto { s: Some(s.to_string().into()), ..attribute(name, AttributeType::String) }
}

pub fn body(name: &str, graph: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(graph), ..attribute(name, AttributeType::Graph) }
}

pub fn tensor_attribute(name: &str, t: TensorProto) -> AttributeProto {
    AttributeProto { t: Some(t), ..attribute(name, AttributeType::Tensor) }
}

/// A reference to an attribute of the function.
pub fn reference(name: &str, ty: AttributeType, to: &str) -> AttributeProto {
    AttributeProto { ref_attr_name: Some(to.to_string()), ..attribute(name, ty) }
}

pub fn int_tensor(name: &str, dims: &[i64], data: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.to_string()),
        dims: dims.to_vec(),
        data_type: Some(DataType::Int64 as i32),
        int64_data: data.to_vec(),
        ..TensorProto::default()
    }
}

pub fn float_tensor(name: &str, dims: &[i64], data: &[f32]) -> TensorProto {
    TensorProto {
        name: Some(name.to_string()),
        dims: dims.to_vec(),
        data_type: Some(DataType::Float as i32),
        float_data: data.to_vec(),
        ..TensorProto::default()
    }
}

pub fn graph(nodes: Vec<NodeProto>, ins: Vec<ValueInfoProto>, outs: Vec<ValueInfoProto>) -> GraphProto {
    GraphProto {
        name: Some("graph".to_string()),
        node: nodes,
        input: ins,
        output: outs,
        ..GraphProto::default()
    }
}

pub fn operator_set(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: Some(domain.to_string()), version: Some(version) }
}

pub fn model(version: i64, graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: Some(10),
        opset_import: vec![operator_set("", version), operator_set("local", 1)],
        graph: Some(graph),
        ..ModelProto::default()
    }
}

pub fn function(name: &str, ins: &str, outs: &str, nodes: Vec<NodeProto>) -> FunctionProto {
    FunctionProto {
        name: Some(name.to_string()),
        domain: Some("local".to_string()),
        input: names(ins),
        output: names(outs),
        node: nodes,
        opset_import: vec![operator_set("", 18), operator_set("local", 1)],
        ..FunctionProto::default()
    }
}

/// A node that calls a function of the model.
pub fn call(name: &str, ins: &str, outs: &str, attributes: Vec<AttributeProto>) -> NodeProto {
    NodeProto { domain: Some("local".to_string()), ..node(name, ins, outs, attributes) }
}

pub fn import(model: &ModelProto) -> Result<Model, Error> {
    from_bytes(model.encode_to_vec(), &Limits::default())
}

/// The results of a model, which must be valid.
pub fn run(model: &ModelProto, inputs: &[Tensor]) -> Vec<Tensor> {
    let model = import(model).unwrap_or_else(|error| panic!("{error}"));
    verify(&model.graph).unwrap_or_else(|error| panic!("{error}"));
    interpret(&model.graph, inputs).unwrap_or_else(|error| panic!("{error}"))
}

/// The results `y0`, `y1`, .. of one node applied to inputs `x0`, `x1`, ..
pub fn run_node(
    op: &str,
    version: i64,
    outputs: usize,
    attributes: Vec<AttributeProto>,
    inputs: &[Tensor],
) -> Vec<Tensor> {
    let ins: Vec<String> = (0..inputs.len()).map(|i| format!("x{i}")).collect();
    let outs: Vec<String> = (0..outputs).map(|i| format!("y{i}")).collect();
    let declared = ins.iter().zip(inputs).map(|(name, x)| {
        let sizes: Vec<Size> = x.shape().iter().map(|&n| Size::Of(n as i64)).collect();
        value(name, data_type(x), &sizes)
    });
    let declared = declared.collect();
    let results = outs.iter().map(|name| any(name)).collect();
    let node = node(op, &ins.join(" "), &outs.join(" "), attributes);
    run(&model(version, graph(vec![node], declared, results)), inputs)
}

fn data_type(x: &Tensor) -> DataType {
    use windlass_ir::DType;
    match x.dtype() {
        DType::Bool => DataType::Bool,
        DType::I8 => DataType::Int8,
        DType::I16 => DataType::Int16,
        DType::I32 => DataType::Int32,
        DType::I64 => DataType::Int64,
        DType::U8 => DataType::Uint8,
        DType::U16 => DataType::Uint16,
        DType::U32 => DataType::Uint32,
        DType::U64 => DataType::Uint64,
        DType::F16 => DataType::Float16,
        DType::BF16 => DataType::Bfloat16,
        DType::F32 => DataType::Float,
        DType::F64 => DataType::Double,
    }
}

/// What is unsupported in a model.
pub fn unsupported(model: &ModelProto) -> Vec<Unsupported> {
    match import(model) {
        Ok(_) => panic!("everything is supported"),
        Err(error) => match error.as_unsupported() {
            Some(list) => list.to_vec(),
            None => panic!("{error}"),
        },
    }
}

/// The message of the error for a model that is not valid.
pub fn invalid(model: &ModelProto) -> String {
    match import(model) {
        Ok(_) => panic!("the model is valid"),
        Err(error @ Error::Unsupported(_)) => panic!("{error}"),
        Err(error) => error.to_string(),
    }
}
