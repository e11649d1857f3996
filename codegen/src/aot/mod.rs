//! Programs to object files that need nothing but their caller.
//!
//! An object holds the kernels, one after another; the model's constants in read-only data (or in a
//! file of their own, to be mapped); and an entry that calls the kernels in order, itself written in
//! CLIF. There is no runtime in it, no allocation, and no undefined symbol: the caller brings the arena,
//! and threads if it wants any. The interface is C, as the [`header`] that comes with it says.
//!
//! Debuggers, profilers and exceptions walk through its functions where the format is ELF, by its `.eh_frame`; objects
//! of other formats have no such table.
//!
//! There may be several [variants] of the kernels and the entry, for processors of x86-64 of different levels. They
//! share constants of the same content, and [functions](dispatch) that choose one of them by what the
//! [processor] says that it has.
//!
//! An object of a [training] step keeps a state in the caller's buffers.

mod archive;
mod dispatch;
mod entry;
mod header;
mod needs;
mod processor;
mod training;
mod unit;
mod variants;
mod weights;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use cranelift_module::{FuncId, Linkage};
use target_lexicon::Endianness;
use windlass_ir::Tensor;
use windlass_ir::loops::{Program, Work};

pub use archive::archive;
use dispatch::Dispatch;
use training::{Training, define_copy};
use unit::Unit;
use variants::Chosen;
pub use variants::{Variant, check_variants};
use weights::Weights;

use crate::compile::{Code, Options, Statistics, compile};
use crate::cranelift;
use crate::error::Error;
use crate::isa::{self, Target};
use crate::jit;

/// Whether functions in C may be called so.
pub fn is_identifier(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// How an object file is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectOptions {
    /// What the names of its functions begin with: a C identifier.
    pub name: String,
    /// Whether there is also an entry that runs parallel loops through a callback.
    pub parallel: bool,
    /// Whether constants are left out of the object, to be passed by the caller.
    pub separate_weights: bool,
    /// How kernels are compiled.
    pub compile: Options,
}

impl Default for ObjectOptions {
    fn default() -> ObjectOptions {
        ObjectOptions {
            name: "model".to_string(),
            parallel: false,
            separate_weights: false,
            compile: Options::default(),
        }
    }
}

/// An object file and what goes with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectArtifact {
    /// The object file.
    pub object: Vec<u8>,
    /// A header for C and C++.
    pub header: String,
    /// The constants, if they are not in the object.
    pub weights: Option<Vec<u8>>,
    /// The size of the arena: that of the variant that needs most.
    pub arena_bytes: u64,
    /// The size of the constants, wherever they are.
    pub weight_bytes: usize,
    /// The functions and data that others may use.
    pub symbols: Vec<String>,
    /// Where compile time went.
    pub statistics: Statistics,
}

/// Compiles a program to an object file.
pub fn object(program: &Program, target: &Target, options: &ObjectOptions) -> Result<ObjectArtifact, Error> {
    object_of_variants(&[Variant { program, target }], options)
}

/// Compiles variants of a model to an object file. If there are several, the code asks the processor at its first call
/// which of them is the best that it runs.
pub fn object_of_variants(
    variants: &[Variant<'_>],
    options: &ObjectOptions,
) -> Result<ObjectArtifact, Error> {
    make(variants, None, options)
}

/// Compiles variants of a training step to an object file. The first inputs of each program are the state, of which these
/// tensors are the one before the first step; its last outputs, made in the memory of those, are the state after a step.
/// The object has functions that begin the state and that run a step, which updates it.
pub fn training_object(
    variants: &[Variant<'_>],
    state: &[Tensor],
    options: &ObjectOptions,
) -> Result<ObjectArtifact, Error> {
    let types: Vec<_> = state.iter().map(Tensor::ty).collect();
    for program in variants.iter().map(|variant| variant.program) {
        let first = program.inputs.iter().take(types.len()).map(|(_, ty)| ty);
        let results = program.outputs.len().saturating_sub(types.len());
        let last = program.outputs.iter().skip(results).map(|(_, ty)| ty);
        let is_in_place = |at: usize| program.in_place.contains(&(at as u32, (results + at) as u32));
        if !first.eq(&types) || !last.eq(&types) || !(0..types.len()).all(is_in_place) {
            return Err(Error::Output("the program does not keep such a state".to_string()));
        }
    }
    make(variants, Some(state), options)
}

fn make(
    variants: &[Variant<'_>],
    state: Option<&[Tensor]>,
    options: &ObjectOptions,
) -> Result<ObjectArtifact, Error> {
    let start = Instant::now();
    let name = &options.name;
    if !is_identifier(name) {
        return Err(Error::Output(format!("`{name}` is not a C identifier")));
    }
    let variants = variants::sorted(variants, options.compile.verify)?;
    let several = variants.len() > 1;
    let mut statistics = Statistics::default();
    let mut compiled = Vec::with_capacity(variants.len());
    for variant in &variants {
        compiled.push(Compiled::new(variant, &options.compile, &mut statistics)?);
    }
    let linking = Instant::now();
    let triple = variants[0].isa.triple().clone();
    let little_endian = triple.endianness() != Ok(Endianness::Big);
    // What chooses a variant must run on every processor.
    let isa = match several {
        true => isa::least(&triple, options.compile.verify)?,
        false => variants[0].isa.clone(),
    };
    let mut unit = Unit::new(isa, name)?;

    let mut weights = Weights::new(little_endian);
    let offsets: Vec<_> = compiled.iter().map(|compiled| weights.add(&compiled.constants)).collect();
    let weight_bytes = weights.bytes.len();
    let data = match options.separate_weights || weights.bytes.is_empty() {
        true => None,
        false => {
            let bytes = std::mem::take(&mut weights.bytes);
            Some(unit.define_data(&format!("{name}_weights"), Linkage::Local, bytes)?)
        }
    };
    let arena_bytes = compiled.iter().map(|compiled| compiled.program.arena_bytes).max().unwrap_or(0);
    let (kept, first) = (state.map_or(0, <[Tensor]>::len), variants[0].program);
    let (inputs, results) = (&first.inputs[kept..], &first.outputs[..first.outputs.len() - kept]);
    let training = state.map(|state| Training {
        name,
        state,
        inputs: inputs.len(),
        outputs: results.len(),
        little_endian,
    });
    let main = if training.is_some() { "step" } else { "run" };
    let mut symbols = vec![format!("{name}_{main}"), format!("{name}_arena_bytes")];
    let bytes = match little_endian {
        true => arena_bytes.to_le_bytes(),
        false => arena_bytes.to_be_bytes(),
    };
    unit.define_data(&symbols[1], Linkage::Export, bytes.to_vec())?;

    let mut functions = Functions::default();
    let (mut entries, mut parallel_entries) = (Vec::new(), Vec::new());
    for ((variant, compiled), offsets) in variants.iter().zip(&compiled).zip(&offsets) {
        let own_name = match several {
            true => format!("{name}_{}", variants::symbol(&variant.cpu)),
            false => name.clone(),
        };
        let model = entry::Model {
            program: compiled.program,
            kernels: &functions.define(&mut unit, &own_name, compiled)?,
            offsets,
            data,
            pass_weights: options.separate_weights,
            name: &own_name,
            linkage: if several || training.is_some() { Linkage::Local } else { Linkage::Export },
            arena_bytes,
        };
        entries.push(model.define(&mut unit, false)?);
        if options.parallel {
            parallel_entries.push(model.define(&mut unit, true)?);
        }
    }
    if options.parallel {
        symbols.push(format!("{name}_{main}_parallel"));
    }
    let names: Vec<String> = variants.iter().map(|variant| variant.cpu.clone()).collect();
    if several {
        let needs: Vec<_> = variants.iter().map(|variant| variant.needs).collect();
        let dispatch = Dispatch::define(&mut unit, name, &needs)?;
        for (parallel, entries) in [(false, &mut entries), (true, &mut parallel_entries)] {
            if !entries.is_empty() {
                let signature = entry::signature(&unit, options.separate_weights, parallel);
                let symbol = format!("{name}_{}", entry::suffix(parallel));
                let linkage = if training.is_some() { Linkage::Local } else { Linkage::Export };
                let chosen = dispatch.forward(&mut unit, &symbol, signature, linkage, entries)?;
                *entries = vec![chosen];
            }
        }
        dispatch.name_of_chosen(&mut unit, &names)?;
        symbols.push(format!("{name}_variant"));
    }
    if let Some(training) = &training {
        let copy = define_copy(&mut unit, name)?;
        training.define_init(&mut unit, copy)?;
        symbols.push(format!("{name}_init"));
        for (parallel, suffix, entries) in
            [(false, "step", &entries), (true, "step_parallel", &parallel_entries)]
        {
            for &run in entries {
                let entry = entry::signature(&unit, options.separate_weights, parallel);
                training.define_step(&mut unit, (run, entry), suffix)?;
            }
        }
    }
    let object = unit.finish()?;
    statistics.link = linking.elapsed();
    statistics.wall = start.elapsed();
    let interface = header::Interface {
        state: training.is_some().then_some(&first.inputs[..kept]),
        inputs,
        outputs: results,
        arena_bytes,
        weight_bytes,
        variants: if several { &names } else { &[] },
    };
    Ok(ObjectArtifact {
        object,
        header: header::header(&interface, options),
        arena_bytes,
        weight_bytes,
        weights: options.separate_weights.then_some(weights.bytes),
        symbols,
        statistics,
    })
}

/// The code of a variant.
struct Compiled<'a> {
    program: &'a Program,
    /// Those that are given, and those that are prepared.
    constants: Vec<Tensor>,
    codes: Vec<Code>,
    /// Which code is each kernel's.
    positions: Vec<usize>,
}

impl<'a> Compiled<'a> {
    fn new(
        variant: &Chosen<'a>,
        options: &Options,
        statistics: &mut Statistics,
    ) -> Result<Compiled<'a>, Error> {
        let program = variant.program;
        let constants = program.all_constants(|prepare| {
            let (outputs, own) = jit::outputs_of(prepare, options)?;
            statistics.add(&own);
            Ok::<_, Error>(outputs)
        })?;
        jit::check(program)?;
        let interpreted: Vec<String> = program
            .steps
            .iter()
            .filter_map(|step| match &step.work {
                Work::Kernel(_) => None,
                Work::Interpret { op, .. } => Some(format!("{} ({})", step.origin.join(", "), op.name())),
            })
            .collect();
        if !interpreted.is_empty() {
            return Err(Error::Interpreted { steps: interpreted });
        }
        let (codes, positions) = compile(&program.kernels, &variant.isa, options, statistics)?;
        Ok(Compiled { program, constants, codes, positions })
    }
}

/// The functions of kernels: each code once, also if several variants have it.
#[derive(Default)]
struct Functions<'a> {
    known: HashMap<(u64, &'a [u8]), FuncId>,
}

impl<'a> Functions<'a> {
    /// The function of each of a variant's kernels.
    fn define(
        &mut self,
        unit: &mut Unit,
        name: &str,
        compiled: &'a Compiled<'_>,
    ) -> Result<Vec<FuncId>, Error> {
        let signature = cranelift::signature(unit.call_conv());
        let mut kernels = Vec::with_capacity(compiled.codes.len());
        for (at, code) in compiled.codes.iter().enumerate() {
            let key = (code.alignment, &code.bytes[..]);
            let id = match self.known.get(&key) {
                Some(&id) => id,
                None => {
                    let kernel = compiled.positions.iter().position(|&position| position == at);
                    let kernel = kernel.map_or("", |kernel| compiled.program.kernels[kernel].name.as_str());
                    let symbol = format!("{name}_k{at}_{kernel}");
                    let (alignment, frame) = (code.alignment, code.frame.clone());
                    let id = unit.define_code(&symbol, &signature, alignment, &code.bytes, frame)?;
                    self.known.insert(key, id);
                    id
                }
            };
            kernels.push(id);
        }
        Ok(compiled.positions.iter().map(|&at| kernels[at]).collect())
    }
}

/// Links an object file to a shared library with the system's C compiler, `cc`.
pub fn shared_library(object: &Path, library: &Path) -> Result<(), Error> {
    let run = Command::new("cc").args(["-shared", "-nostdlib", "-o"]).args([library, object]).output();
    match run {
        Ok(run) if run.status.success() => Ok(()),
        Ok(run) => Err(Error::Output(format!("cc: {}", String::from_utf8_lossy(&run.stderr).trim()))),
        Err(e) => Err(Error::Output(format!("cc could not be run: {e}"))),
    }
}
