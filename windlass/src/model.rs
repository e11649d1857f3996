//! A model as loaded: from an ONNX file, from IR text, or built in Rust.

use std::path::Path;

use windlass_frontend::onnx;
use windlass_ir::text::parse_graph;
use windlass_ir::{Graph, Limits};

use crate::error::Error;

/// A model.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its graph.
    pub graph: Graph,
    /// What its file says about it; empty for a model that is not from an ONNX file.
    pub metadata: onnx::Metadata,
}

impl Model {
    /// Reads a model file; its name's ending says what it is: `.onnx`, or `.wir` for IR text.
    ///
    /// Large `.onnx` files and their external data are mapped into memory, so they must not be changed
    /// while the model is in use.
    pub fn load(path: impl AsRef<Path>, limits: &Limits) -> Result<Model, Error> {
        let path = path.as_ref();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("onnx") => Ok(onnx::load_with(path, limits, Some(&map_file))?.into()),
            Some("wir") => read_text(path, limits).map(Model::from),
            _ => Err(Error::UnknownFormat { path: path.to_path_buf() }),
        }
    }
}

/// A file's bytes, read from disk as they are touched.
fn map_file(file: &std::fs::File) -> std::io::Result<onnx::Bytes> {
    Ok(onnx::Bytes::from_owner(windlass_runtime::Mapping::new(file)?))
}

/// Reads a file of IR text.
fn read_text(path: &Path, limits: &Limits) -> Result<Graph, Error> {
    let io = |source| Error::Io { path: path.to_path_buf(), source };
    let subject = || path.display().to_string();
    let size = std::fs::metadata(path).map_err(io)?.len();
    Limits::check(subject, "bytes", size, limits.file_bytes)?;
    let text = std::fs::read_to_string(path).map_err(io)?;
    parse_graph(&text).map_err(|error| Error::Text { path: path.to_path_buf(), source_text: text, error })
}

impl From<Graph> for Model {
    fn from(graph: Graph) -> Model {
        Model { graph, metadata: onnx::Metadata::default() }
    }
}

impl From<onnx::Model> for Model {
    fn from(model: onnx::Model) -> Model {
        Model { graph: model.graph, metadata: model.metadata }
    }
}
