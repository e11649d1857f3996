//! Tuning: schedules of products chosen by their times on this machine, and remembered in a file.
//!
//! The numbers that a cost model chooses blocks of a product by are varied one after another. Each schedule is compiled
//! and timed on scratch data, and one that is faster by more than noise is kept. No schedule changes the order in which an
//! element is summed, so tuning does not show in results.

mod book;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use windlass_codegen::jit;
use windlass_ir::loops::{Kernel, Nest, Place, Program, Step, Work};
use windlass_ir::{DType, Tensor, TensorType};
use windlass_passes::lower::schedule::knobs::{KNOBS, is_tunable};
use windlass_passes::lower::schedule::{Machine, schedule};
use windlass_runtime::Pool;

use self::book::Book;
use crate::options::{Engine, Options};

/// Where what tuning finds is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    /// The file; `None` is `windlass/tuning.json` in the user's folder for caches, if there is one.
    pub cache: Option<PathBuf>,
}

impl Tuning {
    /// The file, if there is a place for it.
    pub fn path(&self) -> Option<PathBuf> {
        self.cache.clone().or_else(|| Some(dirs::cache_dir()?.join("windlass").join("tuning.json")))
    }

    /// Why the file will not be used, if it is there and is not one of ours, or not whole.
    pub fn warning(&self) -> Option<String> {
        let path = self.path()?;
        let problem = Book::read(&path).err()?;
        Some(format!("{}: {problem}; what was tuned before is not used", path.display()))
    }
}

/// How much faster a schedule must be than the best one so far: less is noise.
const FASTER: f64 = 0.97;

/// How long a schedule is timed, and how often at least and at most.
const TIMED: Duration = Duration::from_millis(10);
const ROUNDS: std::ops::RangeInclusive<u32> = 3..=200;

/// Products over more bytes are not tuned.
const MOST_BYTES: usize = 1 << 30;

/// Chooses schedules while a graph is lowered.
pub(crate) struct Tuner<'o> {
    options: &'o Options,
    machine: Machine,
    path: Option<PathBuf>,
    key: String,
    /// What is remembered of this machine.
    book: Book,
    /// What was found now.
    found: Book,
    pool: Pool,
}

impl<'o> Tuner<'o> {
    /// The tuner that the options ask for, if they do; `machine` is what is assumed without it.
    pub fn new(options: &'o Options, machine: Machine) -> Option<Tuner<'o>> {
        let tuning = options.tune.as_ref().filter(|_| options.engine == Engine::Jit)?;
        let path = tuning.path();
        let book = path.as_deref().and_then(|path| Book::read(path).ok()).unwrap_or_default();
        let (key, found) = (book::machine_key(), Book::default());
        Some(Tuner { options, machine, path, key, book, found, pool: Pool::new(options.threads) })
    }

    /// What the schedule of a formula may assume.
    pub fn choose(&mut self, nest: &Nest) -> Machine {
        if !is_tunable(nest, &self.machine) || bytes(nest) > MOST_BYTES {
            return self.machine;
        }
        let mut hasher = DefaultHasher::new();
        (nest, self.machine, self.options.threads).hash(&mut hasher);
        let fingerprint = hasher.finish();
        let known = [&self.found, &self.book].into_iter().find_map(|book| book.find(&self.key, fingerprint));
        if let Some(machine) = known.and_then(|choice| choice.apply(&self.machine)) {
            return machine;
        }
        let best = self.search(nest);
        self.found.insert(&self.key, fingerprint, &best);
        best
    }

    /// Remembers what was found. That it cannot be is no reason not to go on.
    pub fn finish(self) -> std::io::Result<()> {
        match &self.path {
            Some(path) if !self.found.is_empty() => self.found.merge_into(path),
            _ => Ok(()),
        }
    }

    fn search(&self, nest: &Nest) -> Machine {
        let kernel = |machine: &Machine| schedule(nest, None, "tuned", machine);
        let (mut best, mut chosen) = (self.machine, kernel(&self.machine));
        let Some(mut least) = self.time(nest, &chosen) else { return best };
        for knob in KNOBS {
            for candidate in knob(&best) {
                let scheduled = kernel(&candidate);
                if scheduled == chosen {
                    continue;
                }
                if let Some(time) = self.time(nest, &scheduled)
                    && time.as_secs_f64() < FASTER * least.as_secs_f64()
                {
                    (best, chosen, least) = (candidate, scheduled, time);
                }
            }
        }
        best
    }

    /// The least time of a run, if it can be compiled.
    fn time(&self, nest: &Nest, kernel: &Kernel) -> Option<Duration> {
        let program = program(nest, kernel.clone());
        let options = windlass_codegen::Options {
            vector_bits: self.options.vector_bits,
            ..windlass_codegen::Options::default()
        };
        let (executable, _) = jit(&program, &options).ok()?;
        let ins: Vec<Tensor> = program.inputs.iter().map(|(_, ty)| scratch(ty)).collect();
        let ins: Vec<&[u8]> = ins.iter().map(Tensor::bytes).collect();
        let mut outs: Vec<Tensor> = program.outputs.iter().map(|(_, ty)| scratch(ty)).collect();
        let mut outs: Vec<&mut [u8]> = outs.iter_mut().map(Tensor::bytes_mut).collect();
        let (start, mut least) = (Instant::now(), Duration::MAX);
        for round in 0..*ROUNDS.end() {
            let run = Instant::now();
            executable.run(&self.pool, &ins, &mut outs).ok()?;
            least = least.min(run.elapsed());
            if start.elapsed() > TIMED && round >= *ROUNDS.start() {
                break;
            }
        }
        Some(least)
    }
}

/// Bytes of a formula's operands and results.
fn bytes(nest: &Nest) -> usize {
    let size = |shape: &[usize], dtype: DType| {
        shape.iter().fold(dtype.size(), |bytes, &extent| bytes.saturating_mul(extent))
    };
    let results = nest.roots.iter().map(|&root| size(&nest.shape(), nest.dtype(root)));
    nest.operands.iter().map(|o| size(&o.shape, o.dtype)).chain(results).fold(0, usize::saturating_add)
}

/// A tensor whose values are of ordinary size: computing with tiny ones may take longer.
fn scratch(ty: &TensorType) -> Tensor {
    let shape = ty.shape();
    let ones = Tensor::from_f64s(ty.dtype, &[], &[1.0]);
    let mut tensor = Tensor::zeros(ty.dtype, &shape);
    tensor
        .bytes_mut()
        .chunks_exact_mut(ty.dtype.size())
        .for_each(|element| element.copy_from_slice(ones.bytes()));
    tensor
}

/// A program of one kernel, whose parameters are its inputs and outputs.
fn program(nest: &Nest, kernel: Kernel) -> Program {
    let inputs: Vec<TensorType> =
        nest.operands.iter().map(|operand| TensorType::fixed(operand.dtype, &operand.shape)).collect();
    let outputs: Vec<TensorType> =
        nest.roots.iter().map(|&root| TensorType::fixed(nest.dtype(root), &nest.shape())).collect();
    let args = (0..inputs.len()).map(|i| Place::Input(i as u32));
    let args = args.chain((0..outputs.len()).map(|i| Place::Output(i as u32))).collect();
    let named = |name: &str, types: Vec<TensorType>| {
        types.into_iter().enumerate().map(|(i, ty)| (format!("{name}{i}"), ty)).collect()
    };
    let step = Step { work: Work::Kernel(0), args, origin: Vec::new(), flops: 0 };
    Program {
        kernels: vec![kernel],
        steps: vec![step],
        inputs: named("x", inputs),
        outputs: named("y", outputs),
        ..Program::default()
    }
}
