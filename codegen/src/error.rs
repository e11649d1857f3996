//! What can go wrong between a program and its code.

use windlass_ir::ScalarFn;

/// An error of code generation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// This target is not one that code is made for.
    #[error("target `{target}` is not supported: {reason}")]
    Target {
        /// As it was named.
        target: String,
        /// Why not.
        reason: String,
    },
    /// The processor lacks instructions that the code needs.
    #[error("the processor lacks {missing}, which generated code needs")]
    Features {
        /// The instruction sets.
        missing: String,
    },
    /// Variants that do not go together into one object file.
    #[error("{0}")]
    Variants(String),
    /// A kernel breaks a rule of the loop grammar that an emitter relies on.
    #[error("kernel `{kernel}`: {message}")]
    Kernel {
        /// Its name.
        kernel: String,
        /// Which rule, and where.
        message: String,
    },
    /// A scalar function that is not primitive for its type.
    #[error("kernel `{kernel}`: `{function}` on {dtype} is not primitive")]
    Function {
        /// The kernel's name.
        kernel: String,
        /// The function.
        function: ScalarFn,
        /// The operands' type.
        dtype: windlass_ir::DType,
    },
    /// Cranelift refused a function.
    #[error("kernel `{kernel}`: {message}")]
    Compile {
        /// The kernel's name.
        kernel: String,
        /// What it said.
        message: String,
    },
    /// A step of the program does not fit its kernel or the program's buffers.
    #[error("step {step} ({origin}): {message}")]
    Step {
        /// Its position.
        step: usize,
        /// The graph nodes it came from.
        origin: String,
        /// What does not fit.
        message: String,
    },
    /// Steps without native code, where an object file has no interpreter to call.
    #[error("no native code for {}, so the model cannot be compiled to an object file", steps.join("; "))]
    Interpreted {
        /// Each step's graph nodes and op.
        steps: Vec<String>,
    },
    /// The module could not be put together.
    #[error("{0}")]
    Module(String),
    /// The runtime refused the program.
    #[error(transparent)]
    Runtime(#[from] windlass_runtime::Error),
    /// A file could not be written, or the system's linker failed.
    #[error("{0}")]
    Output(String),
}
