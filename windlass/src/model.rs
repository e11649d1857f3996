//! A model as loaded: from an ONNX file, from IR text, or built in Rust.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use windlass_frontend::onnx::{self, Sizes};
use windlass_ir::text::parse_graph_within;
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
        Model::load_sized(path, limits, &Sizes::default())
    }

    /// Like [`Model::load`], for the sizes that are given: some models cannot be imported for any
    /// (see [`Sizes`]). IR text is read as it is.
    pub fn load_sized(path: impl AsRef<Path>, limits: &Limits, sizes: &Sizes) -> Result<Model, Error> {
        let path = path.as_ref();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("onnx") => Ok(onnx::load_with(path, limits, sizes, Some(&map_file))?.into()),
            Some("wir") => read_text(path, limits).map(Model::from),
            _ => Err(Error::UnknownFormat { path: path.to_path_buf() }),
        }
    }
}

/// A file's bytes, read from disk as they are touched.
fn map_file(file: &File) -> std::io::Result<onnx::Bytes> {
    Ok(onnx::Bytes::from_owner(windlass_runtime::Mapping::new(file)?))
}

/// Reads a file of IR text.
fn read_text(path: &Path, limits: &Limits) -> Result<Graph, Error> {
    let io = |error| Error::Io { path: path.to_path_buf(), error };
    let file = File::open(path).map_err(io)?;
    // What is not a regular file may hold more than it says.
    let mut text = String::new();
    file.take(limits.file_bytes.saturating_add(1)).read_to_string(&mut text).map_err(io)?;
    Limits::check(|| path.display().to_string(), "bytes", text.len() as u64, limits.file_bytes)?;
    parse_graph_within(&text, limits).map_err(|error| Error::Text {
        path: path.to_path_buf(),
        source_text: text,
        error,
    })
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
