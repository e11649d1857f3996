//! Kernels: scheduled loops over flat buffers. The grammar:
//!
//! ```text
//! kernel  = "kernel" name "(" buffer* ")" block
//! buffer  = name ":" dtype "[" len "]" role              role: in | out | inout
//! block   = "{" stmt* "}"
//! stmt    = kind? "for" var "in" "0.." extent block      kind: parallel | vector | unroll; extent: index
//!         | "if" guard ("and" guard)* block ("else" block)?
//!         | "local" name ":" dtype "[" len "]" space     space: register | stack
//!         | val "=" rhs
//!         | name "[" index "]" "=" val
//!         | "prefetch" name "[" index "]"
//! guard   = index "in" "0.." size
//! rhs     = "load" name "[" index "]" ("if" guard ("and" guard)*)?     0 where a guard fails
//!         | "const" dtype literal | "index" index | "inside" guards | function val*
//! index   = sum of coefficient * (var | index "/" c | index "%" c | val)
//! ```
//!
//! **Loop kinds do not change meaning.** A kernel means what its statements say when every loop runs
//! in order, one iteration after another; `parallel`, `vector` and `unroll` promise that another
//! order gives the same bits, and the verifier and the tests hold them to it. So the order of
//! arithmetic stands in the loops: a sum over 32 lanes is a register buffer of 32 partial sums and
//! the loops that fold it, and every emitter and the interpreter give the same bits.
//!
//! - A `parallel` loop is the outermost statement, alone; its iterations store to disjoint elements.
//! - A `vector` loop holds only values and stores; its iterations are lanes and do not depend on each
//!   other. An emitter may run any number of them at once.
//! - A `register` buffer is addressed by constants once `unroll` and constant `vector` loops around
//!   the access are expanded, so it never needs memory.
//! - A `prefetch` says that an element will be read soon. It does nothing else, and may lie outside its buffer.

use std::sync::Arc;

use cranelift_entity::{PrimaryMap, entity_impl};
use smallvec::SmallVec;

use super::{Guard, Index, Val, Var};
use crate::dtype::DType;
use crate::scalar::ScalarFn;

/// Identifies a buffer of a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Buffer(u32);
entity_impl!(Buffer, "b");

/// What a buffer is to its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// A parameter that is only read.
    In,
    /// A parameter that is only written.
    Out,
    /// A parameter that is read and written.
    InOut,
    /// A register tile: its indices are constants once loops around them are unrolled.
    Register,
    /// A small array on the stack.
    Stack,
}

impl Role {
    /// Whether the caller passes it.
    pub fn is_param(self) -> bool {
        matches!(self, Role::In | Role::Out | Role::InOut)
    }
}

/// A flat buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct BufferData {
    /// Its name in text.
    pub name: String,
    /// The element type.
    pub dtype: DType,
    /// The number of elements.
    pub len: usize,
    /// What it is to the kernel.
    pub role: Role,
}

/// How a loop may be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoopKind {
    /// One iteration after another.
    Serial,
    /// Iterations on any threads.
    Parallel,
    /// Iterations as vector lanes.
    Vector,
    /// Iterations written out.
    Unroll,
}

/// The right side of a [`Stmt::Let`].
#[derive(Clone, Debug, PartialEq)]
pub enum Rhs {
    /// An element of a buffer, or 0 where a guard fails.
    Load {
        /// From where.
        buffer: Buffer,
        /// Which element.
        index: Index,
        /// Conditions under which the index is inside.
        guards: Vec<Guard>,
    },
    /// A constant by its bits.
    Const(u64),
    /// An index as an i64.
    Index(Index),
    /// Whether all guards hold.
    Inside(Vec<Guard>),
    /// A scalar function.
    Apply(ScalarFn, SmallVec<[Val; 3]>),
}

/// A value and how it is computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Let {
    /// The value it defines.
    pub val: Val,
    /// How.
    pub rhs: Rhs,
}

/// A statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Stmt {
    /// A loop.
    For {
        /// The variable; its extent bounds `extent`.
        var: Var,
        /// The number of iterations, possibly depending on outer variables.
        extent: Index,
        /// How it may be run.
        kind: LoopKind,
        /// The body.
        body: Block,
    },
    /// Runs one of two blocks.
    If {
        /// All must hold.
        guards: Vec<Guard>,
        /// If they do.
        then: Block,
        /// If not.
        otherwise: Block,
    },
    /// Computes a value, visible to the end of the block.
    Let(Let),
    /// Writes an element.
    Store {
        /// Where to.
        buffer: Buffer,
        /// Which element.
        index: Index,
        /// What.
        val: Val,
    },
    /// Asks for an element to be brought near, if it exists.
    Prefetch {
        /// Of which buffer, in memory.
        buffer: Buffer,
        /// Which element.
        index: Index,
    },
}

/// Statements in order.
pub type Block = Vec<Stmt>;

/// A scheduled kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Its name, an identifier.
    pub name: String,
    /// Parameters, in the order of the call, and locals.
    pub buffers: PrimaryMap<Buffer, BufferData>,
    /// The type of every value.
    pub vals: PrimaryMap<Val, DType>,
    /// Bits of the vectors that it is meant for, if wider ones would have idle lanes. It means the same with any.
    pub vector_bits: Option<usize>,
    /// What it does; copies of the kernel share it.
    pub body: Arc<Block>,
}

impl Kernel {
    /// The buffers the caller passes, in order.
    pub fn params(&self) -> impl Iterator<Item = (Buffer, &BufferData)> {
        self.buffers.iter().filter(|(_, b)| b.role.is_param())
    }

    /// The parallel loop's variable, its constant extent and its body, if there is one.
    pub fn as_parallel(&self) -> Option<(Var, usize, &Block)> {
        match self.body.as_slice() {
            [Stmt::For { var, extent, kind: LoopKind::Parallel, body }] => {
                Some((*var, usize::try_from(extent.as_constant()?).ok()?, body))
            }
            _ => None,
        }
    }

    /// How many elements of a parameter, from its first on, each iteration of the parallel loop leaves behind for good:
    /// after `n` of them, the later ones read none of the first `n` times so many.
    pub fn leaves_behind(&self, buffer: Buffer) -> usize {
        let Some((var, _, body)) = self.as_parallel() else { return 0 };
        let mut least: Option<usize> = None;
        visit_accesses(body, &mut |from, index, writes| {
            if from != buffer || writes {
                return;
            }
            let step = index.coefficient(var).unwrap_or(0);
            let others = index.sub(&Index::var(var).mul(step));
            let may_go_back = !index.values().is_empty() || others.range().0 < 0;
            let behind = if may_go_back { 0 } else { usize::try_from(step).unwrap_or(0) };
            least = Some(least.map_or(behind, |least| least.min(behind)));
        });
        least.unwrap_or(0)
    }
}

/// Visits every access in statements, with whether it writes.
pub fn visit_accesses(block: &[Stmt], visit: &mut impl FnMut(Buffer, &Index, bool)) {
    for stmt in block {
        match stmt {
            Stmt::For { body, .. } => visit_accesses(body, visit),
            Stmt::If { then, otherwise, .. } => {
                visit_accesses(then, visit);
                visit_accesses(otherwise, visit);
            }
            Stmt::Let(Let { rhs: Rhs::Load { buffer, index, .. }, .. }) => visit(*buffer, index, false),
            Stmt::Store { buffer, index, .. } => visit(*buffer, index, true),
            Stmt::Let(_) | Stmt::Prefetch { .. } => {}
        }
    }
}

/// Builds a [`Kernel`]. Blocks are opened and closed like brackets; values can be defined in any block
/// still open, which is how code moves out of loops.
#[derive(Clone, Debug)]
pub struct KernelBuilder {
    kernel: Kernel,
    open: Vec<Frame>,
    next_var: u32,
}

/// A block being built, and the statement it will belong to.
#[derive(Clone, Debug)]
struct Frame {
    opens: Opens,
    block: Block,
}

#[derive(Clone, Debug)]
enum Opens {
    Body,
    Loop { var: Var, extent: Index, kind: LoopKind },
    Then(Vec<Guard>),
    Else(Vec<Guard>, Block),
}

impl KernelBuilder {
    /// An empty kernel.
    pub fn new(name: &str) -> KernelBuilder {
        let kernel = Kernel {
            name: name.to_string(),
            buffers: PrimaryMap::new(),
            vals: PrimaryMap::new(),
            vector_bits: None,
            body: Arc::default(),
        };
        KernelBuilder { kernel, open: vec![Frame { opens: Opens::Body, block: Vec::new() }], next_var: 0 }
    }

    /// Declares a buffer; parameters are passed in the order of declaration.
    pub fn buffer(&mut self, name: &str, dtype: DType, len: usize, role: Role) -> Buffer {
        self.kernel.buffers.push(BufferData { name: name.to_string(), dtype, len, role })
    }

    /// A fresh loop variable.
    pub fn fresh_var(&mut self, extent: usize) -> Var {
        self.next_var += 1;
        Var { id: self.next_var - 1, extent }
    }

    /// The type of a value.
    pub fn dtype(&self, val: Val) -> DType {
        self.kernel.vals[val]
    }

    /// The number of open blocks, less the kernel's own: 0 outside all loops.
    pub fn depth(&self) -> usize {
        self.open.len() - 1
    }

    fn push_at(&mut self, depth: usize, stmt: Stmt) {
        self.open[depth].block.push(stmt);
    }

    fn push(&mut self, stmt: Stmt) {
        self.push_at(self.depth(), stmt);
    }

    /// Opens a loop of constant extent and returns its variable.
    pub fn begin_loop(&mut self, kind: LoopKind, extent: usize) -> Var {
        self.begin_any_loop(kind, extent, Index::constant(extent as i64))
    }

    /// Opens a serial loop whose number of iterations depends on outer variables, at most `bound`, and
    /// returns its variable.
    pub fn begin_loop_below(&mut self, bound: usize, extent: Index) -> Var {
        self.begin_any_loop(LoopKind::Serial, bound, extent)
    }

    /// Opens a loop of any kind whose number of iterations is at most `bound`, and returns its variable.
    pub(super) fn begin_any_loop(&mut self, kind: LoopKind, bound: usize, extent: Index) -> Var {
        let var = self.fresh_var(bound);
        self.open.push(Frame { opens: Opens::Loop { var, extent, kind }, block: Vec::new() });
        var
    }

    /// Opens the block that runs if all guards hold.
    pub fn begin_if(&mut self, guards: &[Guard]) {
        self.open.push(Frame { opens: Opens::Then(guards.to_vec()), block: Vec::new() });
    }

    /// Closes the block of [`Self::begin_if`] and opens the one that runs if a guard fails.
    ///
    /// # Panics
    /// If the innermost open block is not that of an `if`.
    pub fn begin_else(&mut self) {
        let frame = self.open.pop().expect("a block is open");
        let Opens::Then(guards) = frame.opens else { panic!("else without if") };
        self.open.push(Frame { opens: Opens::Else(guards, frame.block), block: Vec::new() });
    }

    /// Closes the innermost block.
    ///
    /// # Panics
    /// If only the kernel's own block is open.
    pub fn end(&mut self) {
        let Frame { opens, block } = self.open.pop().expect("a block is open");
        let stmt = match opens {
            Opens::Body => panic!("the kernel's own block is closed by `finish`"),
            Opens::Loop { var, extent, kind } => Stmt::For { var, extent, kind, body: block },
            Opens::Then(guards) => Stmt::If { guards, then: block, otherwise: Vec::new() },
            Opens::Else(guards, then) => Stmt::If { guards, then, otherwise: block },
        };
        self.push(stmt);
    }

    /// A loop of constant extent around what `body` builds.
    pub fn repeat(&mut self, kind: LoopKind, extent: usize, body: impl FnOnce(&mut KernelBuilder, Index)) {
        let var = self.begin_loop(kind, extent);
        body(self, Index::var(var));
        self.end();
    }

    /// A loop whose number of iterations depends on outer variables; `bound` is the most it can be.
    pub fn repeat_while_below(
        &mut self,
        bound: usize,
        extent: Index,
        body: impl FnOnce(&mut KernelBuilder, Index),
    ) {
        let var = self.begin_loop_below(bound, extent);
        body(self, Index::var(var));
        self.end();
    }

    /// Defines a value in the innermost block.
    pub fn define(&mut self, dtype: DType, rhs: Rhs) -> Val {
        self.define_at(self.depth(), dtype, rhs)
    }

    /// Defines a value in an open block further out, before the block that is open inside it.
    pub fn define_at(&mut self, depth: usize, dtype: DType, rhs: Rhs) -> Val {
        let val = self.kernel.vals.push(dtype);
        self.push_at(depth, Stmt::Let(Let { val, rhs }));
        val
    }

    /// An element of a buffer.
    pub fn load(&mut self, buffer: Buffer, index: Index) -> Val {
        self.load_guarded(buffer, index, Vec::new())
    }

    /// An element of a buffer, or 0 where a guard fails.
    pub fn load_guarded(&mut self, buffer: Buffer, index: Index, guards: Vec<Guard>) -> Val {
        let dtype = self.kernel.buffers[buffer].dtype;
        self.define(dtype, Rhs::Load { buffer, index, guards })
    }

    /// A constant, rounded to the type.
    pub fn constant(&mut self, dtype: DType, value: f64) -> Val {
        self.define(dtype, Rhs::Const(super::nest::const_bits(dtype, value)))
    }

    /// A scalar function.
    ///
    /// # Panics
    /// If the operands are not of the types it takes.
    pub fn apply(&mut self, f: ScalarFn, args: &[Val]) -> Val {
        let types: SmallVec<[DType; 3]> = args.iter().map(|&a| self.dtype(a)).collect();
        let dtype = f.result_type(&types).unwrap_or_else(|message| panic!("{message}"));
        self.define(dtype, Rhs::Apply(f, args.into()))
    }

    /// Writes an element.
    pub fn store(&mut self, buffer: Buffer, index: Index, val: Val) {
        self.push(Stmt::Store { buffer, index, val });
    }

    /// Asks for an element of a buffer in memory to be brought near, if it exists.
    pub fn prefetch(&mut self, buffer: Buffer, index: Index) {
        self.push(Stmt::Prefetch { buffer, index });
    }

    /// The finished kernel.
    ///
    /// # Panics
    /// If a block is still open.
    pub fn finish(mut self) -> Kernel {
        let frame = self.open.pop().expect("the kernel's own block");
        assert!(self.open.is_empty(), "every block is closed");
        self.kernel.body = frame.block.into();
        self.kernel
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn iterations_leave_behind_what_no_later_one_reads() {
        type Place = fn(Index, Index) -> Index;
        let places: [(Place, usize); 4] = [
            (|i, j| i.mul(4).add(&j), 4),
            // Later iterations read further ahead, which leaves as much behind.
            (|i, j| i.mul(4).add(&j.mul(8)), 4),
            (|i, j| i.add(&j.mul(10)), 1),
            (|_, j| j, 0),
        ];
        for (place, expected) in places {
            let mut b = KernelBuilder::new("k");
            let x = b.buffer("x", DType::F32, 64, Role::In);
            let y = b.buffer("y", DType::F32, 40, Role::Out);
            b.repeat(LoopKind::Parallel, 10, |b, i| {
                b.repeat(LoopKind::Serial, 4, |b, j| {
                    let v = b.load(x, place(i.clone(), j.clone()));
                    b.store(y, i.mul(4).add(&j), v);
                });
            });
            let kernel = b.finish();
            assert_eq!(kernel.leaves_behind(x), expected);
            assert_eq!(kernel.leaves_behind(y), 0, "it is not read");
        }
    }
}
