//! `windlass dump`: shows a model at a stage of its compilation.

mod dot;
mod json;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use windlass::compile::{optimize, program};
use windlass::{Dim, Error, Graph, Options, TensorType};
use windlass_codegen::{Target, asm_text, clif_text, ssa_text};
use windlass_frontend::onnx::to_bytes;
use windlass_ir::loops::print_program;
use windlass_ir::text::{LISTED_ELEMENTS, PrintOptions, print_graph_with};

use crate::arguments::{DimArg, SessionArgs, parse_dim};
use crate::failure::Failure;
use crate::inputs::load_model;

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
    /// Write large constants in full, so that text parses back to the graph
    #[arg(long)]
    full: bool,
    /// A size for a named dimension
    #[arg(long = "dim", short, value_name = "NAME=N", value_parser = parse_dim)]
    dims: Vec<DimArg>,
    #[command(flatten)]
    session: SessionArgs,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Stage {
    /// The graph as it was loaded
    Graph,
    /// The graph after the passes
    Optimized,
    /// Kernels as loops
    Loops,
    /// Kernels as instructions on scalars and vectors
    Ssa,
    /// Kernels of 128-bit vectors as Cranelift's intermediate language
    Clif,
    /// Kernels as machine instructions, below the lines of the loops that they are for
    Asm,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    /// IR text
    Text,
    /// DOT, for Graphviz
    Dot,
    /// An ONNX file
    Onnx,
    /// JSON
    Json,
}

impl Dump {
    pub fn execute(self) -> Result<(), Failure> {
        let options = self.session.options();
        let (model, dims) = load_model(&self.model, &options.limits, &[], &self.dims)?;
        let graph = match self.stage {
            Stage::Graph => bind(&model.graph, &dims)?,
            Stage::Optimized => optimize(&bind(&model.graph, &dims)?, &options)?,
            Stage::Loops | Stage::Ssa | Stage::Clif | Stage::Asm => {
                return self.dump_program(&model.graph, &dims, &options);
            }
        };
        let text = match self.format {
            Format::Text => {
                let elide_above = (!self.full).then_some(LISTED_ELEMENTS);
                print_graph_with(&graph, PrintOptions { elide_above })
            }
            Format::Onnx => {
                io::stdout().write_all(&to_bytes(&graph).map_err(Error::from)?)?;
                return Ok(());
            }
            Format::Dot => dot::dot(&graph),
            Format::Json => format!("{}\n", json::graph(&graph)),
        };
        io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}

impl Dump {
    fn dump_program(&self, graph: &Graph, dims: &[DimArg], options: &Options) -> Result<(), Failure> {
        if self.format != Format::Text {
            return Err(Failure::Usage("only graphs have other formats than text".to_string()));
        }
        let (program, _) = program(&bind_all(graph, dims)?, options)?;
        let target = Target::host();
        let mut out = io::stdout().lock();
        match self.stage {
            Stage::Ssa | Stage::Clif | Stage::Asm => {
                for kernel in &program.kernels {
                    let text = match self.stage {
                        Stage::Ssa => ssa_text(kernel, &target, options.vector_bits),
                        Stage::Asm => asm_text(kernel, &target, options.vector_bits),
                        _ => clif_text(kernel, &target),
                    };
                    writeln!(out, "; {}\n{}", kernel.name, text.map_err(Error::from)?)?;
                }
            }
            Stage::Graph | Stage::Optimized | Stage::Loops => {
                out.write_all(print_program(&program).as_bytes())?;
            }
        }
        Ok(())
    }
}

/// The graph with every size known: named dimensions that no size is given for are 1.
pub fn bind_all(graph: &Graph, dims: &[DimArg]) -> Result<Graph, Failure> {
    let graph = bind(graph, dims)?;
    let names = graph.dim_names();
    if !names.is_empty() {
        eprintln!("note: no size was given for {}: 1 is used", names.join(", "));
    }
    let one = |dim: &Dim| Dim::Fixed(dim.as_fixed().unwrap_or(1));
    let types = graph.inputs().iter().map(|(_, value)| {
        let ty = graph.ty(*value);
        TensorType::new(ty.dtype, ty.dims.iter().map(one))
    });
    Ok(windlass::compile::bind(&graph, &types.collect::<Vec<_>>())?)
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
