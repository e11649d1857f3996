//! A compiled model: steps over buffers. One of the files with unsafe code: it calls native kernels
//! with pointers that it computes from checked offsets.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::repeat::{self, Base, Repeat};
use crate::run::Run;
use crate::{AlignedBuffer, Error, Pool, Profile};

/// A native kernel: a table of pointers to its parameters, and the range `begin..end` of its outermost
/// parallel loop (0 and 1 for a kernel without one).
pub type KernelFn = unsafe extern "C" fn(args: *const *mut u8, begin: i64, end: i64);

/// Runs in the host what has no native code: operands in, results out, all as bytes.
pub type HostFn = Box<dyn Fn(&[&[u8]], &mut [&mut [u8]]) -> Result<(), String> + Send + Sync>;

/// The bytes of a constant, shared with whoever made it.
pub struct Constant {
    start: *const u8,
    len: usize,
    #[expect(dead_code, reason = "keeps the bytes alive")]
    owner: Arc<dyn Send + Sync>,
}

// SAFETY: the bytes are read only, by steps, and the owner that keeps them alive is `Send` and `Sync`.
unsafe impl Send for Constant {}
// SAFETY: as above.
unsafe impl Sync for Constant {}

impl fmt::Debug for Constant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Constant").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Constant {
    /// Bytes that are there.
    pub fn new<T: AsRef<[u8]> + Send + Sync + 'static>(owner: T) -> Constant {
        // Where the owner stays, so do its bytes.
        let owner = Arc::new(owner);
        let bytes = (*owner).as_ref();
        Constant { start: bytes.as_ptr(), len: bytes.len(), owner }
    }

    /// Bytes that are written before a step that reads them runs.
    ///
    /// # Safety
    /// `owner` keeps `len` bytes at `start` alive, and nobody writes to them while a step that reads them runs, nor
    /// afterwards.
    pub unsafe fn written_later(start: *const u8, len: usize, owner: Arc<dyn Send + Sync>) -> Constant {
        Constant { start, len, owner }
    }
}

/// Where a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The caller's input of this index.
    Input(u32),
    /// The caller's output of this index.
    Output(u32),
    /// The constant of this index.
    Constant(u32),
    /// A byte offset into the arena.
    Arena(u64),
}

/// What a step runs.
pub enum Work {
    /// A native kernel.
    Kernel {
        /// Its code, which may be made after the executable: see [`Executable::provide`].
        function: OnceLock<KernelFn>,
        /// The iterations of its parallel loop, 1 without one.
        extent: i64,
        /// The fewest iterations that are worth another thread; `extent` if it never is.
        grain: i64,
    },
    /// A callback; of the step's buffers the first `ins` are operands and the others results.
    Host {
        /// The number of operands.
        ins: usize,
        /// What to call.
        function: HostFn,
    },
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Work::Kernel { extent, grain, .. } => {
                f.debug_struct("Kernel").field("extent", extent).field("grain", grain).finish()
            }
            Work::Host { ins, .. } => f.debug_struct("Host").field("ins", ins).finish(),
        }
    }
}

/// One step.
#[derive(Debug)]
pub struct Step {
    /// What runs.
    pub work: Work,
    /// Its buffers in order, with how many bytes of each it reaches over.
    pub args: Vec<(Place, usize)>,
    /// A name for profiles: the kernel, or the op.
    pub name: String,
    /// The graph nodes it came from.
    pub origin: String,
    /// Floating-point operations, 0 where unknown.
    pub flops: u64,
}

/// An input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: usize,
}

/// What an [`Executable`] is made of.
pub struct Parts {
    /// What runs, in order.
    pub steps: Vec<Step>,
    /// Which of them run several times over: ranges in order that do not overlap.
    pub repeats: Vec<Repeat>,
    /// Tensors that are part of the model.
    pub constants: Vec<Constant>,
    /// The size of the arena.
    pub arena_bytes: usize,
    /// The caller's inputs.
    pub inputs: Vec<Port>,
    /// The caller's outputs.
    pub outputs: Vec<Port>,
    /// Inputs in whose memory an output is: (input, output). The caller passes no bytes for such an input, but has it in
    /// the buffer of the output.
    pub in_place: Vec<(u32, u32)>,
    /// Whatever keeps the code alive; dropped with the executable.
    pub code: Box<dyn Send + Sync>,
}

/// What one run at a time uses: the arena and every step's table of pointers.
pub(crate) struct Instance {
    #[expect(dead_code, reason = "owns what the table points into")]
    arena: AlignedBuffer,
    pub(crate) table: Vec<*mut u8>,
    /// Where the arguments that move are without that.
    pub(crate) bases: Vec<Base>,
}

// SAFETY: the pointers go into `arena`, into the executable's constants, or are overwritten at the start
// of each run, or each repeat; none is tied to a thread.
unsafe impl Send for Instance {}

/// A compiled model, ready to run, shared by threads.
pub struct Executable {
    pub(crate) parts: Parts,
    /// Positions in the table that hold a caller's buffer.
    callers: Vec<(u32, Place)>,
    /// How many bytes the caller passes for each input.
    input_bytes: Vec<usize>,
    table_len: usize,
    /// The position in the table of each step's first argument.
    pub(crate) firsts: Vec<usize>,
    pub(crate) idle: Mutex<Vec<Instance>>,
}

impl fmt::Debug for Executable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executable")
            .field("steps", &self.parts.steps)
            .field("arena_bytes", &self.parts.arena_bytes)
            .finish_non_exhaustive()
    }
}

impl Executable {
    /// Checks that every argument lies inside its buffer, and builds an executable.
    ///
    /// # Safety
    /// For every kernel step, in every round: `function` is, or will be, code that `code` keeps alive, and a call with a
    /// table of the step's arguments and any part of `0..extent` reads and writes only the first `bytes` bytes of each
    /// argument and its own stack, writes to no input or constant, and parts that do not overlap may run
    /// at the same time; what it reads of an input in whose memory an output is, it has read before another part, or it
    /// itself, writes there. The results of a host step overlap none of its other arguments.
    pub unsafe fn new(parts: Parts) -> Result<Executable, Error> {
        let mut callers = Vec::new();
        let mut table_len = 0u32;
        let mut firsts = Vec::with_capacity(parts.steps.len());
        let reach = repeat::check(&parts)?;
        for (position, step) in parts.steps.iter().enumerate() {
            firsts.push(table_len as usize);
            for (arg, &(place, bytes)) in step.args.iter().enumerate() {
                let moved = reach.get(&(position, arg)).copied().unwrap_or(0);
                let bytes = bytes.saturating_add(moved);
                let room = match place {
                    Place::Input(i) => parts.inputs.get(i as usize).map(|p| p.bytes),
                    Place::Output(i) => parts.outputs.get(i as usize).map(|p| p.bytes),
                    Place::Constant(i) => parts.constants.get(i as usize).map(|c| c.len),
                    Place::Arena(offset) => {
                        usize::try_from(offset).ok().and_then(|offset| parts.arena_bytes.checked_sub(offset))
                    }
                };
                if room.is_none_or(|room| bytes > room) {
                    return Err(Error::Outside {
                        step: position,
                        origin: step.origin.clone(),
                        arg,
                        bytes,
                        place: format!("{place:?}"),
                    });
                }
                match place {
                    Place::Input(i) => {
                        let pair = parts.in_place.iter().find(|(input, _)| *input == i);
                        callers.push((table_len, pair.map_or(place, |&(_, output)| Place::Output(output))));
                    }
                    Place::Output(_) => callers.push((table_len, place)),
                    Place::Constant(_) | Place::Arena(_) => {}
                }
                table_len += 1;
            }
        }
        let mut input_bytes: Vec<usize> = parts.inputs.iter().map(|port| port.bytes).collect();
        for &(input, output) in &parts.in_place {
            let room = parts.outputs.get(output as usize).map(|port| port.bytes);
            match input_bytes.get_mut(input as usize) {
                Some(bytes) if room == Some(*bytes) => *bytes = 0,
                _ => return Err(Error::InPlace { input, output }),
            }
        }
        let (table_len, idle) = (table_len as usize, Mutex::new(Vec::new()));
        Ok(Executable { parts, callers, input_bytes, table_len, firsts, idle })
    }

    /// The caller's inputs.
    pub fn inputs(&self) -> &[Port] {
        &self.parts.inputs
    }

    /// The caller's outputs.
    pub fn outputs(&self) -> &[Port] {
        &self.parts.outputs
    }

    /// The steps.
    pub fn steps(&self) -> &[Step] {
        &self.parts.steps
    }

    /// How often a step runs in one run of the model.
    pub fn rounds(&self, step: usize) -> usize {
        let repeat = self.parts.repeats.iter().find(|repeat| repeat.steps.contains(&step));
        repeat.map_or(1, |repeat| repeat.times)
    }

    /// The size of the arena that each concurrent run uses.
    pub fn arena_bytes(&self) -> usize {
        self.parts.arena_bytes
    }

    /// The bytes of all constants.
    pub fn constant_bytes(&self) -> usize {
        self.parts.constants.iter().map(|c| c.len).sum()
    }

    /// Gives a step its code, unless it has some or needs none.
    ///
    /// # Safety
    /// The code is what the contract of [`Executable::new`] says of it.
    pub unsafe fn provide(&self, step: usize, code: KernelFn) {
        if let Some(Step { work: Work::Kernel { function, .. }, .. }) = self.parts.steps.get(step) {
            // Whoever was first provided code of the same meaning.
            let _ = function.set(code);
        }
    }

    /// Runs the model on the pool's threads. Every byte of the outputs is written.
    pub fn run(&self, pool: &Pool, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), Error> {
        let mut run = self.start(inputs, outputs)?;
        while run.next().is_some() {
            run.step(pool)?;
        }
        Ok(())
    }

    /// Runs the model and adds the time of each step to a profile.
    pub fn run_profiled(
        &self,
        pool: &Pool,
        inputs: &[&[u8]],
        outputs: &mut [&mut [u8]],
        profile: &mut Profile,
    ) -> Result<(), Error> {
        profile.steps.resize(self.parts.steps.len(), Duration::ZERO);
        profile.runs += 1;
        let mut run = self.start(inputs, outputs)?;
        let mut observe = |step: usize, time: Duration| profile.steps[step] += time;
        while run.next().is_some() {
            run.advance(pool, Some(&mut observe))?;
        }
        Ok(())
    }

    /// Begins a run of the model, whose steps the caller asks for one by one.
    pub fn start<'r>(&'r self, inputs: &'r [&[u8]], outputs: &'r mut [&mut [u8]]) -> Result<Run<'r>, Error> {
        let expected = self.input_bytes.iter().copied();
        check("input", &self.parts.inputs, expected, inputs.iter().map(|b| b.len()))?;
        let expected = self.parts.outputs.iter().map(|port| port.bytes);
        check("output", &self.parts.outputs, expected, outputs.iter().map(|b| b.len()))?;
        let mut instance = match self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            Some(instance) => instance,
            None => self.instance()?,
        };
        for &(slot, place) in &self.callers {
            instance.table[slot as usize] = match place {
                Place::Input(i) => inputs[i as usize].as_ptr().cast_mut(),
                Place::Output(i) => outputs[i as usize].as_mut_ptr(),
                Place::Constant(_) | Place::Arena(_) => continue,
            };
        }
        Ok(Run::new(self, instance))
    }

    /// Gives back the memory that runs which have ended leave for later ones.
    pub fn release(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn instance(&self) -> Result<Instance, Error> {
        let mut arena = AlignedBuffer::zeroed(self.parts.arena_bytes)?;
        let start = arena.as_mut_ptr();
        let mut table = Vec::with_capacity(self.table_len);
        for &(place, _) in self.parts.steps.iter().flat_map(|step| &step.args) {
            table.push(match place {
                Place::Input(_) | Place::Output(_) => std::ptr::null_mut(),
                Place::Constant(i) => self.parts.constants[i as usize].start.cast_mut(),
                Place::Arena(offset) => start.wrapping_add(offset as usize),
            });
        }
        let most = self.parts.repeats.iter().map(|repeat| repeat.moves.len()).max().unwrap_or(0);
        Ok(Instance { arena, table, bases: vec![Base::NONE; most] })
    }
}

fn check(
    what: &'static str,
    ports: &[Port],
    expected: impl Iterator<Item = usize>,
    sizes: impl ExactSizeIterator<Item = usize>,
) -> Result<(), Error> {
    if sizes.len() != ports.len() {
        let what = if what == "input" { "inputs" } else { "outputs" };
        return Err(Error::Count { what, expected: ports.len(), found: sizes.len() });
    }
    for ((port, expected), found) in ports.iter().zip(expected).zip(sizes) {
        if found != expected {
            return Err(Error::Size { what, name: port.name.clone(), expected, found });
        }
    }
    Ok(())
}

/// A table of arguments, lent to the workers.
pub(crate) struct Table(pub(crate) *mut *mut u8);

// SAFETY: workers only read the table while kernels run, and kernels honour the contract of `Executable::new`.
unsafe impl Sync for Table {}

impl Table {
    pub(crate) fn start(&self) -> *mut *mut u8 {
        self.0
    }

    pub(crate) fn at(&self, slot: usize) -> *const *mut u8 {
        self.0.wrapping_add(slot)
    }
}

/// The code of a step.
pub(crate) fn code_of(step: &Step, function: &OnceLock<KernelFn>) -> Result<KernelFn, Error> {
    function.get().copied().ok_or_else(|| Error::NoCode { origin: step.origin.clone() })
}

/// Runs a step, with these arguments.
pub(crate) fn call(step: &Step, args: &[*mut u8], pool: &Pool) -> Result<(), Error> {
    match &step.work {
        Work::Kernel { extent, .. } => call_part(step, args, pool, 0..*extent),
        Work::Host { ins, function } => {
            let sizes = step.args.iter().map(|&(_, bytes)| bytes);
            let mut buffers = args.iter().zip(sizes);
            let operands: Vec<&[u8]> = buffers
                .by_ref()
                .take(*ins)
                // SAFETY: checked to lie inside a live buffer; results do not overlap operands.
                .map(|(&start, bytes)| unsafe { std::slice::from_raw_parts(start, bytes) })
                .collect();
            let mut results: Vec<&mut [u8]> = buffers
                // SAFETY: as above, and results do not overlap each other.
                .map(|(&start, bytes)| unsafe { std::slice::from_raw_parts_mut(start, bytes) })
                .collect();
            function(&operands, &mut results)
                .map_err(|message| Error::Host { origin: step.origin.clone(), message })
        }
    }
}

/// So many chunks of a loop for each thread: at its end all wait for the last chunk, and a thread that the system holds
/// up is helped out.
const CHUNKS_PER_THREAD: usize = 4;

/// Runs a part of the parallel loop of a step that is a kernel.
pub(crate) fn call_part(step: &Step, args: &[*mut u8], pool: &Pool, part: Range<i64>) -> Result<(), Error> {
    let Work::Kernel { function, grain, .. } = &step.work else { return Ok(()) };
    let function = code_of(step, function)?;
    let table = Table(args.as_ptr().cast_mut());
    let extent = part.end - part.start;
    let chunks = match pool.threads() {
        1 => 1,
        threads => (CHUNKS_PER_THREAD * threads).min((extent / grain.max(&1)) as usize),
    };
    pool.run(extent, chunks, &|begin, end| {
        // SAFETY: the contract of `Executable::new`: each argument was checked to lie inside a
        // buffer that outlives this run, and parts do not overlap.
        unsafe { function(table.at(0), part.start + begin, part.start + end) }
    });
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Doubles bytes.
    pub(crate) unsafe extern "C" fn double(args: *const *mut u8, begin: i64, end: i64) {
        for i in begin as usize..end as usize {
            // SAFETY: the step below declares two buffers of 100 bytes.
            unsafe { *(*args.add(1)).add(i) = *(*args).add(i) * 2 }
        }
    }

    /// Doubles an input twice.
    pub(crate) fn parts() -> Parts {
        let step = |from, to| Step {
            work: Work::Kernel { function: OnceLock::from(double as KernelFn), extent: 100, grain: 10 },
            args: vec![(from, 100), (to, 100)],
            name: "double".to_string(),
            origin: "d".to_string(),
            flops: 0,
        };
        let port = |name: &str| vec![Port { name: name.to_string(), bytes: 100 }];
        Parts {
            steps: vec![step(Place::Input(0), Place::Arena(64)), step(Place::Arena(64), Place::Output(0))],
            constants: Vec::new(),
            repeats: Vec::new(),
            arena_bytes: 164,
            inputs: port("x"),
            outputs: port("y"),
            in_place: Vec::new(),
            code: Box::new(()),
        }
    }

    #[test]
    fn runs_are_concurrent_and_checked() {
        // SAFETY: `double` keeps to its two buffers.
        let executable = unsafe { Executable::new(parts()) }.unwrap();
        let pool = Pool::new(2);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let (x, mut y) = ([3u8; 100], [0u8; 100]);
                        executable.run(&pool, &[&x], &mut [&mut y]).unwrap();
                        assert_eq!(y, [12u8; 100]);
                    }
                });
            }
        });
        let mut y = [0u8; 100];
        let error = executable.run(&pool, &[&[0; 99]], &mut [&mut y]).unwrap_err();
        assert_eq!(error.to_string(), "input `x` takes 100 bytes, found 99");
        assert!(executable.run(&pool, &[], &mut [&mut y]).is_err());
    }

    #[test]
    fn arguments_outside_their_buffer_are_refused() {
        let mut parts = parts();
        parts.arena_bytes = 163;
        // SAFETY: it is not run.
        let error = unsafe { Executable::new(parts) }.unwrap_err();
        assert!(matches!(error, Error::Outside { step: 0, arg: 1, bytes: 100, .. }), "{error}");
    }
}
