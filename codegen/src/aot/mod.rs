//! Programs to object files that need nothing but their caller.
//!
//! An object holds the kernels, one after another; the model's constants in read-only data (or in a
//! file of their own, to be mapped); and an entry that calls the kernels in order, itself written in
//! CLIF. There is no runtime in it, no allocation, and no undefined symbol: the caller brings the arena,
//! and threads if it wants any. The interface is C, as the [`header`] that comes with it says.

mod archive;
mod entry;
mod header;

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use cranelift_module::{DataDescription, Linkage, Module, ModuleError, default_libcall_names};
use cranelift_object::object::SectionKind;
use cranelift_object::{ObjectBuilder, ObjectModule};
use target_lexicon::BinaryFormat;
use windlass_ir::loops::{Program, Work};

pub use archive::archive;

use crate::compile::{Options, Statistics, compile};
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
    /// The functions and data that others may use.
    pub symbols: Vec<String>,
    /// Where compile time went.
    pub statistics: Statistics,
}

/// Compiles a program to an object file.
pub fn object(program: &Program, target: &Target, options: &ObjectOptions) -> Result<ObjectArtifact, Error> {
    let start = Instant::now();
    let name = &options.name;
    if !is_identifier(name) {
        return Err(Error::Output(format!("`{name}` is not a C identifier")));
    }
    let mut statistics = Statistics::default();
    let program = &*program.prepared(|prepare| {
        let (outputs, own) = jit::outputs_of(prepare, &options.compile)?;
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
    let isa = isa::build(target, options.compile.verify, true)?;
    let (codes, positions) = compile(&program.kernels, &isa, &options.compile, &mut statistics)?;
    let linking = Instant::now();
    let little_endian = target.is_little_endian();
    let weights = Weights::new(program, little_endian);
    let call_conv = isa.default_call_conv();
    let builder = ObjectBuilder::new(isa, name.as_str(), default_libcall_names()).map_err(fail)?;
    let mut module = ObjectModule::new(builder);

    let mut kernels = Vec::with_capacity(codes.len());
    for (at, code) in codes.iter().enumerate() {
        let first = positions.iter().position(|&p| p == at).map_or("", |k| program.kernels[k].name.as_str());
        let symbol = format!("{name}_k{at}_{first}");
        let signature = cranelift::signature(call_conv);
        let id = module.declare_function(&symbol, Linkage::Local, &signature).map_err(fail)?;
        module.define_function_bytes(id, code.alignment, &code.bytes, &[]).map_err(fail)?;
        kernels.push(id);
    }
    let kernels: Vec<_> = positions.iter().map(|&at| kernels[at]).collect();
    let mut symbols = vec![format!("{name}_run"), format!("{name}_arena_bytes")];
    let arena_bytes = match little_endian {
        true => program.arena_bytes.to_le_bytes(),
        false => program.arena_bytes.to_be_bytes(),
    };
    define_data(&mut module, &symbols[1], Linkage::Export, arena_bytes.to_vec())?;
    let data = match options.separate_weights || weights.bytes.is_empty() {
        true => None,
        false => {
            let bytes = weights.bytes.clone();
            Some(define_data(&mut module, &format!("{name}_weights"), Linkage::Local, bytes)?)
        }
    };
    let model = entry::Model {
        program,
        kernels: &kernels,
        weights: &weights,
        data,
        pass_weights: options.separate_weights,
        name,
    };
    model.define(&mut module, false)?;
    if options.parallel {
        model.define(&mut module, true)?;
        symbols.push(format!("{name}_run_parallel"));
    }
    let mut product = module.finish();
    if target.triple.binary_format == BinaryFormat::Elf {
        // Says that the code needs no executable stack.
        let segment = Vec::new();
        product.object.add_section(segment, b".note.GNU-stack".to_vec(), SectionKind::Other);
    }
    let object = product.emit().map_err(|e| Error::Module(e.to_string()))?;
    statistics.link = linking.elapsed();
    statistics.wall = start.elapsed();
    Ok(ObjectArtifact {
        object,
        header: header::header(program, options, weights.bytes.len()),
        weights: options.separate_weights.then_some(weights.bytes),
        symbols,
        statistics,
    })
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

/// All constants, one after another, each aligned.
struct Weights {
    bytes: Vec<u8>,
    offsets: Vec<usize>,
}

impl Weights {
    fn new(program: &Program, little_endian: bool) -> Weights {
        let mut weights = Weights { bytes: Vec::new(), offsets: Vec::new() };
        for tensor in &program.constants {
            let aligned = weights.bytes.len().next_multiple_of(Program::ALIGN as usize);
            weights.bytes.resize(aligned, 0);
            weights.offsets.push(aligned);
            match little_endian == cfg!(target_endian = "little") {
                true => weights.bytes.extend_from_slice(tensor.raw_bytes()),
                false => {
                    for element in tensor.raw_bytes().chunks(tensor.dtype().size()) {
                        weights.bytes.extend(element.iter().rev());
                    }
                }
            }
        }
        weights
    }
}

fn define_data(
    module: &mut ObjectModule,
    symbol: &str,
    linkage: Linkage,
    bytes: Vec<u8>,
) -> Result<cranelift_module::DataId, Error> {
    let id = module.declare_data(symbol, linkage, false, false).map_err(fail)?;
    let mut data = DataDescription::new();
    data.set_align(Program::ALIGN);
    data.define(bytes.into_boxed_slice());
    module.define_data(id, &data).map_err(fail)?;
    Ok(id)
}

fn fail(e: ModuleError) -> Error {
    Error::Module(e.to_string())
}
