//! `windlass opt`: runs passes over a model and prints the graph that comes out.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use windlass_passes::{Options as PassOptions, Stage, pass, pipeline, run_observed};

use crate::arguments::{DimArg, LimitArgs, parse_dim};
use crate::dump::bind;
use crate::failure::Failure;
use crate::inputs::load_model;
use crate::table::{table, time};

/// Run passes over a model and print the graph as text
#[derive(Args)]
pub struct Opt {
    /// The model: .onnx or .wir
    model: PathBuf,
    /// A pass or pipeline to run, in the order given (`windlass list passes`); O2 if none is
    #[arg(long = "pass", short, value_name = "NAME")]
    passes: Vec<String>,
    /// A size for a named dimension
    #[arg(long = "dim", short, value_name = "NAME=N", value_parser = parse_dim)]
    dims: Vec<DimArg>,
    /// Show on stderr the graph after each pass that changed it
    #[arg(long)]
    print_after_all: bool,
    /// Show on stderr how long each pass took and how often it rewrote
    #[arg(long)]
    time_passes: bool,
    /// Show on stderr each rule that fired, and why the others did not
    #[arg(long)]
    explain: bool,
    /// Stop after this many rewrites
    #[arg(long, value_name = "N")]
    fuel: Option<u64>,
    /// For the pass `vmap`: how many examples a batch has
    #[arg(long, value_name = "N", default_value_t = 2)]
    batch: usize,
    /// For the pass `vmap`: an input that the examples share
    #[arg(long, value_name = "NAME")]
    shared: Vec<String>,
    /// For the pass `checkpoint`: the bytes to keep values within; half of what they are if not given
    #[arg(long, value_name = "BYTES")]
    memory_limit: Option<u64>,
    #[command(flatten)]
    limits: LimitArgs,
}

impl Opt {
    pub fn execute(self) -> Result<(), Failure> {
        let (model, dims) = load_model(&self.model, &self.limits.limits(), &[], &self.dims)?;
        let graph = bind(&model.graph, &dims)?;
        let names = if self.passes.is_empty() { vec!["O2".to_string()] } else { self.passes };
        let mut stages: Vec<Stage> = Vec::new();
        for name in &names {
            match (pipeline(name), pass(name)) {
                (Some(pipeline), _) => stages.extend_from_slice(pipeline.stages),
                (None, Ok(pass)) => stages.push(Stage::Pass(pass)),
                (None, Err(error)) => return Err(Failure::Usage(error.to_string())),
            }
        }
        let options = PassOptions {
            fuel: self.fuel,
            explain: self.explain,
            verify: true,
            batch: self.batch,
            shared: self.shared,
            memory_limit: self.memory_limit,
            ..PassOptions::default()
        };
        let (graph, report) = run_observed(&graph, &stages, &options, |pass, graph| {
            if self.print_after_all {
                eprintln!("// after {}\n{graph}", pass.name);
            }
        })
        .map_err(windlass::Error::from)?;
        write!(io::stdout().lock(), "{graph}")?;
        if self.explain {
            for record in &report.records {
                eprintln!("{record}");
            }
        }
        if self.time_passes {
            let mut rows = table(&["pass", "time", "rewrites"], &[1, 2]);
            for (pass, total, rewrites) in report.totals() {
                rows.add_row([pass.to_string(), time(total), rewrites.to_string()]);
            }
            rows.add_row(["(verifying)".to_string(), time(report.verify_time), String::new()]);
            eprintln!("{}", rows.trim_fmt());
        }
        Ok(())
    }
}
