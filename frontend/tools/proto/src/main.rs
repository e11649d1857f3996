//! Writes the Rust types of ONNX's protobuf messages: `windlass-onnx-proto INCLUDE OUT`.
//!
//! `INCLUDE` is the folder that holds `onnx/onnx-ml.proto` and `onnx/onnx-data.proto`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(include), Some(out)) = (args.next(), args.next()) else {
        return Err("usage: windlass-onnx-proto INCLUDE OUT".into());
    };
    let schemas = ["onnx-ml.proto", "onnx-data.proto"].map(|name| format!("{include}/onnx/{name}"));
    let descriptors = protox::compile(schemas, [include])?;
    let folder = std::env::temp_dir();
    // `Bytes` shares the file's memory, so raw tensor data is copied once, into the tensor.
    prost_build::Config::new()
        .bytes(["."])
        .disable_comments(["."])
        .out_dir(&folder)
        .compile_fds(descriptors)?;
    std::fs::copy(folder.join("onnx.rs"), out)?;
    Ok(())
}
