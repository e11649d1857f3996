//! The runtime of Windlass: what compiled code needs while it runs, and no compiler.
//!
//! An [`Executable`] is a list of steps over buffers: calls of native kernels, and callbacks into
//! the host for the few ops without native code. A step's code may come after it, before the step first runs; else it
//! is immutable and shared by threads; what a run
//! needs for itself (the arena and the table of kernel arguments) is taken from a free list and put
//! back, so a run allocates nothing and takes no lock while kernels execute. A [`Run`] goes step by step, and may run a
//! step in parts. A [`Pool`] runs the
//! outermost parallel loop of a kernel in contiguous chunks, on threads of its own or on those that the
//! caller's [`Executor`] lends; steps that are [repeated](Repeat) are one job whose threads meet after each. Chunks never change the bits of a
//! result, so results do not depend on the number of threads.
//!
//! Unsafe code stands in [`mod@buffer`] (aligned memory), `map` (mapped files), `pool` and
//! `turns` (lending a job to the workers) `executable` and `repeat` (calling kernels).
//!
//! ```
//! use windlass_runtime::Pool;
//! use std::sync::atomic::{AtomicI64, Ordering};
//!
//! let pool = Pool::new(2);
//! let sum = AtomicI64::new(0);
//! pool.run(1000, 4, &|begin, end| {
//!     sum.fetch_add((begin..end).sum::<i64>(), Ordering::Relaxed);
//! });
//! assert_eq!(sum.into_inner(), 499_500);
//! ```

pub mod buffer;
mod error;
mod executable;
mod executor;
mod map;
mod pool;
mod profile;
mod repeat;
mod run;
mod turns;

pub use buffer::AlignedBuffer;
pub use error::Error;
pub use executable::{Constant, Executable, HostFn, KernelFn, Parts, Place, Port, Step, Work};
pub use executor::{Executor, Helper};
pub use map::{Mapping, unload};
pub use pool::Pool;
pub use profile::Profile;
pub use repeat::{Move, Repeat};
pub use run::Run;

/// The alignment of every buffer in bytes: a cache line, and the widest vector.
pub const ALIGN: usize = 64;
