//! `windlass compile`: makes an object file, an archive or a shared library of a model.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use windlass::compile::program;
use windlass::{Error, Model};
use windlass_codegen::{
    ObjectArtifact, ObjectOptions, Options as CodeOptions, Target, archive, is_identifier, object,
    shared_library,
};

use crate::arguments::{DimArg, SessionArgs, parse_dim};
use crate::dump::bind_all;
use crate::failure::Failure;
use crate::table::{bytes, time};

/// Compile a model to an object file with a C header
///
/// The name of the output says what it is: .o an object file, .a an archive, .so a shared library (made
/// with the system's `cc`). The header goes beside it, named after it. Every size is fixed: a named
/// dimension is what --dim says, else 1. The code needs nothing but its caller: no libc, libm or runtime.
#[derive(Args)]
pub struct Compile {
    /// The model: .onnx or .wir
    model: PathBuf,
    /// The file to make: .o, .a or .so
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// A size for a named dimension
    #[arg(long = "dim", short, value_name = "NAME=N", value_parser = parse_dim)]
    dims: Vec<DimArg>,
    /// What the names of the functions begin with; the output's name if not given
    #[arg(long, value_name = "NAME", value_parser = parse_identifier)]
    name: Option<String>,
    /// What to compile for, such as aarch64-unknown-linux-gnu (`windlass list targets`); this machine if
    /// not given
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,
    /// The processor's level, such as x86-64-v3
    #[arg(long, value_name = "NAME")]
    cpu: Option<String>,
    /// Also make an entry that runs parallel loops through a callback of the caller
    #[arg(long)]
    parallel: bool,
    /// Write the weights to a file beside the output, for the caller to map
    #[arg(long)]
    separate_weights: bool,
    #[command(flatten)]
    session: SessionArgs,
}

impl Compile {
    pub fn execute(self) -> Result<(), Failure> {
        let extension = self.output.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if !["o", "a", "so"].contains(&extension) {
            let output = self.output.display();
            return Err(Failure::Usage(format!("{output}: the name of the output ends in .o, .a or .so")));
        }
        let target = self.target(extension)?;
        let progress = match std::io::stderr().is_terminal() {
            true => ProgressBar::new_spinner(),
            false => ProgressBar::hidden(),
        };
        progress.enable_steady_tick(Duration::from_millis(100));
        let mut options = self.session.options();
        if self.target.is_some() && options.tune.take().is_some() {
            eprintln!("warning: schedules can only be timed on the machine they are for; none is tuned");
        }
        let widest = target.vector_bits().map_err(Error::from)?;
        options.vector_bits = Some(options.vector_bits.map_or(widest, |bits| bits.min(widest)));
        options.little_endian = target.is_little_endian();
        let has_byte_products = target.has_byte_products().map_err(Error::from)?;
        options.byte_products = Some(options.vector_bits == Some(512) && has_byte_products);
        progress.set_message("loading");
        let model = Model::load(&self.model, &options.limits)?;
        let graph = bind_all(&model.graph, &self.dims)?;
        progress.set_message("optimising");
        let (program, report) = program(&graph, &options)?;
        progress.set_message("generating code");
        let object_options = ObjectOptions {
            name: self.name.clone().unwrap_or_else(|| identifier(&self.output)),
            parallel: self.parallel,
            separate_weights: self.separate_weights,
            compile: CodeOptions { vector_bits: options.vector_bits, ..CodeOptions::default() },
        };
        let made = object(&program, &target, &object_options).map_err(Error::from)?;
        self.write(extension, &object_options.name, &made)?;
        progress.finish_and_clear();
        let phases: Vec<String> =
            report.phases.iter().map(|phase| format!("{} {}", phase.name, time(phase.time))).collect();
        eprintln!(
            "{}: {} of code in {} kernels, {} of weights, {} of arena ({}, codegen {})",
            self.output.display(),
            bytes(made.statistics.code_bytes as u64),
            made.statistics.distinct,
            bytes(report.constant_bytes),
            bytes(report.arena_bytes),
            phases.join(", "),
            time(made.statistics.wall)
        );
        Ok(())
    }

    /// What to compile for.
    fn target(&self, extension: &str) -> Result<Target, Failure> {
        let wrong = |error: windlass_codegen::Error| Failure::Usage(error.to_string());
        let mut target = match &self.target {
            Some(triple) => Target::parse(triple).map_err(wrong)?,
            None => Target::host(),
        };
        if extension == "so" && target.triple != Target::host().triple {
            let output = self.output.display();
            let message = format!(
                "{output}: shared libraries are made for this machine only; {} has .o and .a",
                target.triple
            );
            return Err(Failure::Usage(message));
        }
        if self.cpu.is_some() {
            target.cpu = self.cpu.clone();
        }
        target.check().map_err(wrong)?;
        Ok(target)
    }

    /// Writes all files beside the output and gives them their names at the end, so that none is ever seen
    /// in part.
    fn write(&self, extension: &str, name: &str, made: &ObjectArtifact) -> Result<(), Failure> {
        let beside = match self.output.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let folder = tempfile::Builder::new().prefix(".windlass").tempdir_in(beside);
        let folder = folder.map_err(Failure::io(&self.output))?;
        let mut files = Vec::new();
        let mut add = |path: PathBuf, contents: Option<&[u8]>| {
            let temporary = folder.path().join(path.file_name().unwrap_or_default());
            if let Some(contents) = contents {
                std::fs::write(&temporary, contents).map_err(Failure::io(&path))?;
            }
            files.push((temporary, path));
            Ok::<(), Failure>(())
        };
        match extension {
            "a" => {
                let archive = archive(&format!("{name}.o"), &made.object, &made.symbols);
                add(self.output.clone(), Some(&archive))?;
            }
            "so" => {
                let object = folder.path().join("object");
                std::fs::write(&object, &made.object).map_err(Failure::io(&self.output))?;
                let library = folder.path().join(self.output.file_name().unwrap_or_default());
                shared_library(&object, &library).map_err(Error::from)?;
                add(self.output.clone(), None)?;
            }
            _ => add(self.output.clone(), Some(&made.object))?,
        }
        add(self.output.with_extension("h"), Some(made.header.as_bytes()))?;
        if let Some(weights) = &made.weights {
            add(self.output.with_extension("weights"), Some(weights))?;
        }
        // The output comes last: where it is, the others are.
        for (temporary, path) in files.into_iter().rev() {
            std::fs::rename(&temporary, &path).map_err(Failure::io(&path))?;
        }
        Ok(())
    }
}

fn parse_identifier(text: &str) -> Result<String, String> {
    match is_identifier(text) {
        true => Ok(text.to_string()),
        false => Err(format!("`{text}` is not a C identifier")),
    }
}

/// A C identifier from a file's name.
fn identifier(path: &Path) -> String {
    let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = stem.chars().map(word).collect();
    match name.chars().next() {
        Some(first) if !first.is_ascii_digit() => name,
        _ => format!("model_{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_valid_c() {
        assert_eq!(identifier(Path::new("out/res-net.50.o")), "res_net_50");
        assert_eq!(identifier(Path::new("7.o")), "model_7");
    }
}
