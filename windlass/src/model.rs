//! A model as loaded: from an ONNX file, from IR text, or built in Rust.

use std::path::Path;

use windlass_ir::{Graph, Limits};

use crate::error::Error;

/// A model.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its graph.
    pub graph: Graph,
}

impl Model {
    /// Reads a model file; its name's ending says what it is: `.onnx`, or `.wir` for IR text.
    pub fn load(path: impl AsRef<Path>, limits: &Limits) -> Result<Model, Error> {
        let path = path.as_ref();
        let _ = limits;
        Err(Error::UnknownFormat { path: path.to_path_buf() })
    }
}

impl From<Graph> for Model {
    fn from(graph: Graph) -> Model {
        Model { graph }
    }
}
