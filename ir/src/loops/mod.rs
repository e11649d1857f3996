//! The loop level, in two forms.
//!
//! A [`Nest`] is a pure formula: each element of its results as an expression over index maps and
//! reductions, with no order of loops. Ops lower to nests, and fusion substitutes one nest into
//! another. A [`Kernel`] is a scheduled program: loops, register tiles and stores, the last form
//! that machine code is made from. A [`Program`] is kernels over one arena, in order, some [repeated](Repeat); an op of
//! several kernels is written as [`Rounds`]. [`mod@interpret`] runs kernels and is the bit-exact oracle of
//! generated code.

mod expand;
mod guard;
mod index;
pub mod interpret;
mod kernel;
mod machine;
mod needed;
mod nest;
mod nest_interpret;
mod program;
mod rounds;
mod splice;
mod text;
mod verify;

use cranelift_entity::entity_impl;

pub use expand::{Native, check_expanded, expand_kernel, expand_with_origins, is_emitted};
pub use guard::Guard;
pub use index::{Atom, Index, Var};
pub use kernel::{
    Block, Buffer, BufferData, Kernel, KernelBuilder, Let, LoopKind, Rhs, Role, Stmt, visit_accesses,
};
pub use machine::{MachineFn, machine_fn};
pub use nest::{Expr, Nest, NestBuilder, Operand, Reduction, const_bits};
pub use nest_interpret::interpret_nest;
pub use program::{Move, Origin, Place, Program, Repeat, Step, Work};
pub use rounds::{Call, Part, Rounds, Stage};
pub use splice::Redirect;
pub use text::{parse_kernel, print_kernel, print_lines, print_nest, print_program};
pub use verify::verify_kernel;

/// Identifies a scalar value of a nest or kernel body.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Val(u32);
entity_impl!(Val, "v");
