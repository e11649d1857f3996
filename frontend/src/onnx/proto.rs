//! ONNX's protobuf messages. `generated.rs` is written by `frontend/tools/proto` and checked in.

#![expect(missing_docs, reason = "generated code; ONNX's onnx.proto documents every field")]

include!("generated.rs");

/// How a node is called in messages: its operator with its name, or else its first result.
pub(crate) fn describe(node: &NodeProto) -> String {
    let operator = node.op_type();
    match (node.name(), node.output.iter().find(|name| !name.is_empty())) {
        ("", Some(output)) => format!("{operator} (of `{output}`)"),
        ("", None) => operator.to_string(),
        (name, _) => format!("{operator} `{name}`"),
    }
}
