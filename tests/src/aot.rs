//! Programs as object files, many at a time: linked into one shared library by the system's compiler and
//! run by a C program, since calling into a library is unsafe and this crate has no unsafe code.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use windlass_codegen::{Error, ObjectOptions, Options, Target, object};
use windlass_ir::Tensor;
use windlass_ir::loops::Program;

const DRIVER: &str = include_str!("aot_driver.c");

/// The C program, compiled, in a folder that goes when this does.
pub struct Driver {
    folder: TempDir,
}

impl Driver {
    /// Compiles the C program.
    ///
    /// # Panics
    /// If the system has no C compiler.
    pub fn new() -> Driver {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        std::fs::write(folder.path().join("driver.c"), DRIVER).expect("the folder can be written to");
        let strict = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror"];
        let arguments = [&strict[..], &["driver.c", "-o", "driver", "-ldl"]].concat();
        if let Err(message) = execute("cc", &arguments, folder.path()) {
            panic!("the tests of object files need a C compiler, `cc`: {message}");
        }
        Driver { folder }
    }

    /// Links the batch's objects and runs each on its inputs. For each member in order, its outputs.
    pub fn run(&self, batch: Batch) -> Result<Vec<Vec<Tensor>>, String> {
        if batch.members.is_empty() {
            return Ok(Vec::new());
        }
        let folder = self.folder.path();
        let write = |name: &str, bytes: &[u8]| std::fs::write(folder.join(name), bytes);
        let mut arguments = vec!["-shared".to_string(), "-nostdlib".to_string(), "-Wl,-z,text".to_string()];
        arguments.push("-Wl,--no-undefined".to_string());
        let mut input = Vec::new();
        for (at, member) in batch.members.iter().enumerate() {
            let object = format!("{at}.o");
            write(&object, &member.object).map_err(|e| e.to_string())?;
            arguments.push(object);
            member.describe(&mut input);
        }
        arguments.extend(["-o", "graphs.so"].map(str::to_string));
        execute("cc", &arguments, folder)?;
        write("input", &input).map_err(|e| e.to_string())?;
        execute("./driver", &["./graphs.so", "input", "output"], folder)?;
        let bytes = std::fs::read(folder.join("output")).map_err(|e| e.to_string())?;
        let mut rest = &bytes[..];
        let mut results = Vec::new();
        for member in &batch.members {
            let mut outputs = Vec::new();
            for like in &member.outputs {
                let (own, after) = rest.split_at_checked(like.bytes().len()).ok_or("output ends early")?;
                rest = after;
                outputs.push(Tensor::from_bytes(like.dtype(), like.shape(), own).ok_or("wrong size")?);
            }
            results.push(outputs);
        }
        match rest.len() {
            0 => Ok(results),
            n => Err(format!("{n} bytes too many")),
        }
    }
}

impl Default for Driver {
    fn default() -> Driver {
        Driver::new()
    }
}

/// Programs to link together, with what they run on.
#[derive(Default)]
pub struct Batch {
    members: Vec<Member>,
}

struct Member {
    name: String,
    object: Vec<u8>,
    inputs: Vec<Tensor>,
    /// Tensors of the outputs' types.
    outputs: Vec<Tensor>,
}

impl Batch {
    /// How many programs there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Adds a program, compiled for this machine. False if the interpreter must run some of it, for then
    /// there is no object file of it. `outputs` are tensors of the types of its outputs.
    pub fn add(
        &mut self,
        program: &Program,
        vector_bits: usize,
        inputs: &[Tensor],
        outputs: &[Tensor],
    ) -> Result<bool, String> {
        let name = format!("g{}", self.members.len());
        let compile = Options { vector_bits: Some(vector_bits), ..Options::default() };
        let options = ObjectOptions { name: name.clone(), compile, ..ObjectOptions::default() };
        let target = Target { cpu: Some("native".to_string()), ..Target::host() };
        match object(program, &target, &options) {
            Ok(made) => {
                let (inputs, outputs) = (inputs.to_vec(), outputs.to_vec());
                self.members.push(Member { name, object: made.object, inputs, outputs });
                Ok(true)
            }
            Err(Error::Interpreted { .. }) => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Member {
    /// What the driver reads.
    fn describe(&self, input: &mut Vec<u8>) {
        let number = |input: &mut Vec<u8>, n: usize| input.extend((n as u64).to_ne_bytes());
        number(input, self.name.len());
        input.extend(self.name.as_bytes());
        number(input, self.inputs.len());
        number(input, self.outputs.len());
        for tensor in &self.inputs {
            number(input, tensor.bytes().len());
            input.extend(tensor.bytes());
        }
        for tensor in &self.outputs {
            number(input, tensor.bytes().len());
        }
    }
}

/// Runs a program, and fails with what it said.
fn execute(program: &str, arguments: &[impl AsRef<std::ffi::OsStr>], folder: &Path) -> Result<(), String> {
    let run = Command::new(program).args(arguments).current_dir(folder).output();
    let run = run.map_err(|error| format!("{program} could not be run: {error}"))?;
    match run.status.success() {
        true => Ok(()),
        false => Err(format!("{program} failed ({}): {}", run.status, String::from_utf8_lossy(&run.stderr))),
    }
}
