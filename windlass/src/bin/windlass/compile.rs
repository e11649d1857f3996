//! `windlass compile`: makes an object file, an archive or a shared library of a model.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use windlass::compile::{Phase, Report, program};
use windlass::{Error, Options};
use windlass_codegen::{
    ObjectArtifact, ObjectOptions, Options as CodeOptions, Target, Variant, archive, check_variants,
    is_identifier, object_of_variants, shared_library, training_object,
};
use windlass_ir::loops::Program;

use crate::arguments::{DimArg, SessionArgs, parse_dim};
use crate::dump::bind_all;
use crate::failure::Failure;
use crate::inputs::load_model;
use crate::table::{bytes, time};
use crate::train::ahead::StepArgs;

/// Compile a model to an object file with a C header
///
/// The name of the output says what it is: .o an object file, .a an archive, .so a shared library (made
/// with the system's `cc`). The header goes beside it, named after it. Every size is fixed: a named
/// dimension is what --dim says, else 1. The code needs nothing but its caller: no libc, libm or runtime.
/// For x86-64 it may have variants for processors of several levels, of which its first call chooses one.
/// With --train it is a training step, which updates a state that the caller keeps.
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
    /// The processor's level, such as x86-64-v3; several for code that chooses the best of them where it
    /// runs, such as x86-64-v3,x86-64-v4
    #[arg(long, value_name = "NAME,..", value_delimiter = ',')]
    cpu: Vec<String>,
    /// Also make an entry that runs parallel loops through a callback of the caller
    #[arg(long)]
    parallel: bool,
    /// Write the weights to a file beside the output, for the caller to map
    #[arg(long)]
    separate_weights: bool,
    #[command(flatten)]
    session: SessionArgs,
    #[command(flatten)]
    step: StepArgs,
}

impl Compile {
    pub fn execute(self) -> Result<(), Failure> {
        let extension = self.output.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if !["o", "a", "so"].contains(&extension) {
            let output = self.output.display();
            return Err(Failure::Usage(format!("{output}: the name of the output ends in .o, .a or .so")));
        }
        let targets = self.targets(extension)?;
        let progress = match std::io::stderr().is_terminal() {
            true => ProgressBar::new_spinner(),
            false => ProgressBar::hidden(),
        };
        progress.enable_steady_tick(Duration::from_millis(100));
        let mut options = self.session.options();
        let elsewhere = self.target.is_some() || !self.cpu.is_empty();
        if elsewhere && options.tune.take().is_some() {
            eprintln!("warning: schedules can only be timed on the machine they are for; none is tuned");
        }
        progress.set_message("loading");
        let (model, dims) = load_model(&self.model, &options.limits, &[], &self.dims)?;
        let step = self.step.step(&model.graph, &dims, &options)?;
        options.in_place = step.as_ref().map_or(Vec::new(), |(step, _)| step.in_place());
        let graph = match &step {
            Some((step, _)) => step.graph.clone(),
            None => bind_all(&model.graph, &dims)?,
        };
        progress.set_message("optimising");
        // Processors for which the model is laid out in the same way share it.
        let mut layouts: Vec<(Layout, Program, Report)> = Vec::new();
        let mut chosen = Vec::new();
        for target in &targets {
            let layout = Layout::new(target, options.vector_bits)?;
            let known = layouts.iter().position(|(known, _, _)| *known == layout);
            chosen.push(known.unwrap_or(layouts.len()));
            if known.is_none() {
                let (program, report) = program(&graph, &layout.options(&options))?;
                layouts.push((layout, program, report));
            }
        }
        let variants: Vec<Variant<'_>> = targets
            .iter()
            .zip(&chosen)
            .map(|(target, &layout)| Variant { program: &layouts[layout].1, target })
            .collect();
        progress.set_message("generating code");
        let object_options = ObjectOptions {
            name: self.name.clone().unwrap_or_else(|| identifier(&self.output)),
            parallel: self.parallel,
            separate_weights: self.separate_weights,
            compile: CodeOptions { vector_bits: options.vector_bits, ..CodeOptions::default() },
        };
        let made = match &step {
            Some((_, state)) => training_object(&variants, state, &object_options),
            None => object_of_variants(&variants, &object_options),
        };
        let made = made.map_err(Error::from)?;
        self.write(extension, &object_options.name, &made)?;
        progress.finish_and_clear();
        let mut phases: Vec<Phase> = Vec::new();
        for phase in layouts.iter().flat_map(|(_, _, report)| &report.phases) {
            match phases.iter_mut().find(|sum| sum.name == phase.name) {
                Some(sum) => sum.time += phase.time,
                None => phases.push(phase.clone()),
            }
        }
        let phases: Vec<String> =
            phases.iter().map(|phase| format!("{} {}", phase.name, time(phase.time))).collect();
        eprintln!(
            "{}: {} of code in {} kernels, {} of weights, {} of arena ({}, codegen {})",
            self.output.display(),
            bytes(made.statistics.code_bytes as u64),
            made.statistics.distinct,
            bytes(made.weight_bytes as u64),
            bytes(made.arena_bytes),
            phases.join(", "),
            time(made.statistics.wall)
        );
        Ok(())
    }

    /// What to compile for: one target, or one for each level.
    fn targets(&self, extension: &str) -> Result<Vec<Target>, Failure> {
        let wrong = |error: windlass_codegen::Error| Failure::Usage(error.to_string());
        let target = match &self.target {
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
        let targets = match &self.cpu[..] {
            [] => vec![target],
            cpus => cpus.iter().map(|cpu| Target { cpu: Some(cpu.clone()), ..target.clone() }).collect(),
        };
        check_variants(&targets).map_err(wrong)?;
        Ok(targets)
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

/// What a target asks of the loops.
#[derive(PartialEq, Eq)]
struct Layout {
    vector_bits: usize,
    little_endian: bool,
    byte_products: bool,
}

impl Layout {
    /// That of the widest vectors that a target has and the user wants.
    fn new(target: &Target, most_bits: Option<usize>) -> Result<Layout, Error> {
        let widest = target.vector_bits()?;
        let vector_bits = most_bits.map_or(widest, |bits| bits.min(widest));
        let byte_products = vector_bits == 512 && target.has_byte_products()?;
        Ok(Layout { vector_bits, little_endian: target.is_little_endian(), byte_products })
    }

    fn options(&self, options: &Options) -> Options {
        Options {
            vector_bits: Some(self.vector_bits),
            little_endian: self.little_endian,
            byte_products: Some(self.byte_products),
            ..options.clone()
        }
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
