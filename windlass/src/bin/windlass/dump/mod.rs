//! `windlass dump`: shows a model at a stage of its compilation.

mod dot;
mod json;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use windlass::{Graph, Limits, Model};

use crate::arguments::{DimArg, parse_dim};
use crate::failure::Failure;

/// Show a model at a stage of its compilation
#[derive(Args)]
pub struct Dump {
    /// The model: .onnx or .wir
    model: PathBuf,
    /// The stage
    #[arg(long, value_enum, default_value = "graph")]
    stage: Stage,
    /// How a graph is written
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// A size for a named dimension
    #[arg(long = "dim", short, value_name = "NAME=N", value_parser = parse_dim)]
    dims: Vec<DimArg>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Stage {
    /// The graph as it was loaded
    Graph,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    /// IR text
    Text,
    /// DOT, for Graphviz
    Dot,
    /// JSON
    Json,
}

impl Dump {
    pub fn execute(self) -> Result<(), Failure> {
        let model = Model::load(&self.model, &Limits::default())?;
        let graph = bind(&model.graph, &self.dims)?;
        let text = match (self.stage, self.format) {
            (Stage::Graph, Format::Text) => format!("{graph:?}"),
            (Stage::Graph, Format::Dot) => dot::dot(&graph),
            (Stage::Graph, Format::Json) => format!("{}\n", json::graph(&graph)),
        };
        io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}

/// The graph with named dimensions replaced by the sizes given.
pub fn bind(graph: &Graph, dims: &[DimArg]) -> Result<Graph, Failure> {
    let names = graph.dim_names();
    if let Some(dim) = dims.iter().find(|dim| !names.iter().any(|name| **name == *dim.name)) {
        return Err(Failure::Usage(format!("the model has no dimension `{}`", dim.name)));
    }
    match dims {
        [] => Ok(graph.clone()),
        dims => Ok(graph.bind(|name| dims.iter().find(|dim| dim.name == name).map(|dim| dim.size))?),
    }
}
