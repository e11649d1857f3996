//! What can go wrong when a compiled model is loaded or run.

/// An error of the runtime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The wrong number of inputs or outputs.
    #[error("the model has {expected} {what}, found {found}")]
    Count {
        /// `inputs` or `outputs`.
        what: &'static str,
        /// What the model declares.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// A buffer of the wrong size.
    #[error("{what} `{name}` takes {expected} bytes, found {found}")]
    Size {
        /// `input` or `output`.
        what: &'static str,
        /// Its name.
        name: String,
        /// What the model declares.
        expected: usize,
        /// What was given.
        found: usize,
    },
    /// Memory for the arena could not be had.
    #[error("no memory for {bytes} bytes")]
    OutOfMemory {
        /// What was asked for.
        bytes: usize,
    },
    /// A step names a buffer that is not there or reaches past its end.
    #[error("step {step} ({origin}), argument {arg}: {bytes} bytes at {place} are outside the buffer")]
    Outside {
        /// The step's position.
        step: usize,
        /// The graph nodes it came from.
        origin: String,
        /// The argument's position.
        arg: usize,
        /// How many bytes it reaches over.
        bytes: usize,
        /// Where.
        place: String,
    },
    /// An output in the memory of an input that is not there, has another size, or holds another output too.
    #[error("output {output} cannot be in the memory of input {input}")]
    InPlace {
        /// The input's position.
        input: u32,
        /// The output's position.
        output: u32,
    },
    /// A step is run before it was given its code.
    #[error("{origin}: there is no code yet")]
    NoCode {
        /// The graph nodes the step came from.
        origin: String,
    },
    /// A repeat of steps that are not there or not next, or that moves what is no argument or before its buffer.
    #[error("steps {first}..{end} cannot be repeated {rounds} times")]
    Repeat {
        /// The first step.
        first: usize,
        /// The step behind the last.
        end: usize,
        /// The number of rounds.
        rounds: usize,
    },
    /// A host callback failed.
    #[error("{origin}: {message}")]
    Host {
        /// The graph nodes the step came from.
        origin: String,
        /// Why.
        message: String,
    },
}
