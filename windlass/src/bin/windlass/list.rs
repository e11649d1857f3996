//! `windlass list`: what this build knows: ops, passes, targets.

use std::io::{self, Write};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use windlass_codegen::Target;
use windlass_ir::Op;
use windlass_passes::{PASSES, PIPELINES, Stage};

use crate::failure::Failure;
use crate::table::table;

/// List ops, passes or targets
#[derive(Args)]
pub struct List {
    /// What to list
    #[arg(value_enum)]
    what: What,
    /// Print one JSON array
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    /// Ops of the graph level, with the ONNX operators that become them one to one
    Ops,
    /// Passes, and the pipelines of the optimisation levels
    Passes,
    /// Targets that code is made for
    Targets,
}

impl List {
    pub fn execute(self) -> Result<(), Failure> {
        let (header, rows) = match self.what {
            What::Ops => (["op", "ONNX operators"], ops()),
            What::Passes => (["pass", "what it does"], passes()),
            What::Targets => (["target", "what it is"], targets()),
        };
        let mut out = io::stdout().lock();
        if self.json {
            let rows: Vec<Value> =
                rows.iter().map(|(name, text)| json!({ "name": name, "text": text })).collect();
            writeln!(out, "{}", Value::from(rows))?;
        } else {
            let mut lines = table(&header, &[]);
            for (name, text) in rows {
                lines.add_row([name, text]);
            }
            writeln!(out, "{}", lines.trim_fmt())?;
        }
        Ok(())
    }
}

fn ops() -> Vec<(String, String)> {
    let onnx = |operators: &[(&str, std::ops::RangeInclusive<u32>)]| {
        let each = operators.iter().map(|(name, opsets)| match *opsets.end() {
            u32::MAX => format!("{name} {}..", opsets.start()),
            end => format!("{name} {}..{end}", opsets.start()),
        });
        each.collect::<Vec<_>>().join(", ")
    };
    let rows = Op::LIST.iter().flat_map(|op| op.names.iter().map(|name| (name.to_string(), onnx(op.onnx))));
    rows.collect()
}

fn passes() -> Vec<(String, String)> {
    let mut rows: Vec<(String, String)> =
        PASSES.iter().map(|pass| (pass.name.to_string(), pass.help.to_string())).collect();
    for pipeline in PIPELINES {
        let stages: Vec<String> = pipeline
            .stages
            .iter()
            .map(|stage| match stage {
                Stage::Pass(pass) => pass.name.to_string(),
                Stage::Fixpoint { passes, .. } => {
                    format!("({})*", passes.iter().map(|pass| pass.name).collect::<Vec<_>>().join(" "))
                }
            })
            .collect();
        rows.push((pipeline.name.to_string(), stages.join(" ")));
    }
    rows
}

fn targets() -> Vec<(String, String)> {
    let host = Target::host().triple.to_string();
    let mut rows = vec![(host.clone(), "this machine".to_string())];
    let others = Target::TRIPLES.iter().filter(|triple| **triple != host);
    rows.extend(others.map(|triple| (triple.to_string(), "object files".to_string())));
    rows
}
