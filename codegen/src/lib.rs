//! From loops to machine code.
//!
//! A [`Program`](windlass_ir::loops::Program) goes in; an executable in memory ([`jit`]) or an object
//! file ([`object`]) comes out.
//! Each kernel becomes one function, compiled on several threads:
//!
//! ```text
//! kernel -> expand (ir) -> emit, for vectors of some width -> SSA -> Cranelift's IR -> bytes -> module
//!                                                                 -> x86-64 ---------> bytes -> module
//! ```
//!
//! The [emitter](emit) walks loops once and writes [SSA](ssa) over scalars and vectors. [Cranelift](cranelift)
//! makes code of it for every target, with vectors of 128 bits; [`x86`] does so with vectors of 256 bits where the
//! target has AVX2 and FMA, and of 512 where it has AVX-512. [`Options::vector_bits`] chooses. Whatever makes the bytes, they enter a Cranelift
//! module, which puts them into memory or an object file. With the bytes comes how each function is [left](frames)
//! through its caller, which object files of ELF carry.
//!
//! The order of arithmetic is the kernel's; the emitter only chooses where code stands and how wide
//! vectors are, so the bits are those of the loop interpreter at every width. Code calls nothing: no libm, no
//! libc, no helper per element.
//!
//! ```
//! use windlass_codegen::{Options, jit};
//! use windlass_ir::loops::{KernelBuilder, LoopKind, Place, Program, Role, Step, Work};
//! use windlass_ir::{DType, ScalarFn, TensorType};
//! use windlass_runtime::Pool;
//!
//! let mut b = KernelBuilder::new("double");
//! let x = b.buffer("x", DType::F32, 6, Role::In);
//! let y = b.buffer("y", DType::F32, 6, Role::Out);
//! b.repeat(LoopKind::Vector, 6, |b, i| {
//!     let v = b.load(x, i.clone());
//!     let v = b.apply(ScalarFn::Add, &[v, v]);
//!     b.store(y, i, v);
//! });
//! let ty = TensorType::fixed(DType::F32, &[6]);
//! let program = Program {
//!     kernels: vec![b.finish()],
//!     steps: vec![Step {
//!         work: Work::Kernel(0),
//!         args: vec![Place::Input(0), Place::Output(0)],
//!         origin: vec!["double".into()],
//!         flops: 6,
//!     }],
//!     inputs: vec![("x".to_string(), ty.clone())],
//!     outputs: vec![("y".to_string(), ty)],
//!     ..Program::default()
//! };
//! let (executable, _) = jit(&program, &Options::default()).unwrap();
//! let x = windlass_ir::Tensor::new::<f32>(&[6], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
//! let mut y = windlass_ir::Tensor::zeros(DType::F32, &[6]);
//! executable.run(&Pool::new(1), &[x.bytes()], &mut [y.bytes_mut()]).unwrap();
//! assert_eq!(y.to_f64s(), [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]);
//! ```
//!
//! [`jit_and_run`] runs a program while its code is made: each step as soon as there are its code and its constants.
//!
//! Unsafe code stands in `jit` only.

mod aot;
mod compile;
mod cranelift;
mod emit;
mod error;
mod frames;
mod isa;
mod jit;
mod listing;
mod ssa;
pub mod vector;
mod x86;

pub use aot::{
    ObjectArtifact, ObjectOptions, Variant, archive, check_variants, is_identifier, object,
    object_of_variants, shared_library, training_object,
};
pub use compile::{Options, Statistics, clif_text, ssa_text};
pub use error::Error;
pub use isa::Target;
pub use jit::{jit, jit_and_run};
pub use listing::asm_text;
