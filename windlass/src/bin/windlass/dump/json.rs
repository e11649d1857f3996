//! A graph as JSON, for tools.

use serde_json::{Map, Value, json};
use windlass_ir::attrs::Slot;
use windlass_ir::{Graph, Late, Op, Tensor};

/// Constants of at most this many elements are shown with their elements.
const SHOWN_ELEMENTS: usize = 64;

/// Inputs, nodes and outputs in order; values are named as in IR text.
pub fn graph(graph: &Graph) -> Value {
    let port = |(name, value): &(String, windlass_ir::Value)| json!({ "name": name, "value": value.to_string(), "type": graph.ty(*value).to_string() });
    let nodes: Vec<Value> = graph
        .nodes()
        .map(|(_, data)| {
            let names = |values: &[windlass_ir::Value]| -> Vec<String> {
                values.iter().map(ToString::to_string).collect()
            };
            json!({
                "op": data.op.name(),
                "name": data.name.as_deref(),
                "inputs": names(&data.ins),
                "outputs": names(&data.outs),
                "types": data.outs.iter().map(|&v| graph.ty(v).to_string()).collect::<Vec<_>>(),
                "attributes": attributes(&data.op),
            })
        })
        .collect();
    json!({
        "name": graph.name,
        "inputs": graph.inputs().iter().map(port).collect::<Vec<_>>(),
        "outputs": graph.outputs().iter().map(port).collect::<Vec<_>>(),
        "nodes": nodes,
    })
}

fn attributes(op: &Op) -> Value {
    let mut found = Map::new();
    let mut visit = |name: &'static str, slot: Slot<'_>| {
        let value = match slot {
            Slot::Int(v) => json!(v),
            Slot::Ints(v) => json!(v),
            Slot::Float(v) => json!(v),
            Slot::Floats(v) => json!(v),
            Slot::Text(v) => json!(v),
            Slot::Bool(v) => json!(v),
            Slot::Keyword(v) => json!(v.word()),
            Slot::DType(v) => json!(v.name()),
            Slot::Tensor(v) => tensor(v),
            Slot::Graph(v) => graph(v),
            Slot::Late(Late::Known(v)) => json!(v),
            Slot::Late(Late::Operand(index)) => json!({ "operand": index }),
        };
        found.insert(name.to_string(), value);
        Ok(())
    };
    op.clone().attrs(&mut visit).expect("reading attributes cannot fail");
    Value::Object(found)
}

fn tensor(tensor: &Tensor) -> Value {
    let mut object = json!({ "type": tensor.ty().to_string() });
    if tensor.len() <= SHOWN_ELEMENTS {
        object["elements"] = match tensor.dtype().is_float() {
            true => json!(tensor.to_f64s()),
            false => json!(tensor.to_ints()),
        };
    }
    object
}
