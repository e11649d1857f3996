//! How a session compiles and runs.

use windlass_ir::Limits;

use crate::tune::Tuning;

/// What runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// Native code made in memory.
    Jit,
    /// The interpreter of loops, on what the machine code is made from: gives the same bits as it.
    Loops,
    /// The interpreter of graphs: slow, and the definition of the right result.
    Interpreter,
}

/// The options of a [`crate::Session`].
#[derive(Clone, Debug)]
pub struct Options {
    /// What runs the model.
    pub engine: Engine,
    /// How many threads one run uses, the caller's included. The results do not depend on it.
    pub threads: usize,
    /// How much the passes do: 0 only lowers, 1 adds folding and fusion, 2 everything.
    pub opt_level: u8,
    /// The most bits of a vector: 128, 256 or 512. `None` is as many as the machine has. The results do not depend on
    /// it.
    pub vector_bits: Option<usize>,
    /// Whether the machine stores the low half of a word first.
    pub little_endian: bool,
    /// Whether the machine multiplies bytes, four to a word, in one instruction. `None` is whether this one does, with
    /// vectors of so many bits. The results do not depend on it.
    pub byte_products: Option<bool>,
    /// What a model may ask for.
    pub limits: Limits,
    /// Whether 3x3 convolutions may be computed as products of transformed tiles, in less time and with other roundings
    /// of about the same size.
    pub winograd: bool,
    /// Whether the weights of products are rounded to bf16, which products of few rows then read in half the time.
    /// Arithmetic stays in f32.
    pub bf16_weights: bool,
    /// The bytes that values between inputs and outputs are to stay within, as far as they can, by computing values of a
    /// training step again in place of keeping them. The results do not depend on it.
    pub memory_limit: Option<u64>,
    /// Inputs in whose memory outputs of the same type are made, by their names: what a training step makes of a parameter
    /// takes its place. See [`crate::Session::run_in_place`].
    pub in_place: Vec<(String, String)>,
    /// How many compiled forms are kept, one for each set of input sizes in use.
    pub cache: usize,
    /// Whether each kernel's time is counted.
    pub profile: bool,
    /// Whether schedules of products are chosen by their times, and where those are remembered. It takes a good part of a
    /// second for each product the first time; the results do not depend on it.
    pub tune: Option<Tuning>,
}

impl Options {
    /// The highest [`Self::opt_level`].
    pub const MAX_OPT_LEVEL: u8 = 2;
}

impl Default for Options {
    fn default() -> Options {
        Options {
            engine: Engine::Jit,
            threads: 1,
            opt_level: Options::MAX_OPT_LEVEL,
            vector_bits: None,
            byte_products: None,
            little_endian: cfg!(target_endian = "little"),
            winograd: true,
            bf16_weights: false,
            memory_limit: None,
            limits: Limits::default(),
            in_place: Vec::new(),
            cache: 8,
            profile: false,
            tune: None,
        }
    }
}
