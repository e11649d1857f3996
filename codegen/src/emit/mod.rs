//! Kernels as SSA.
//!
//! The emitter walks a kernel once and writes [SSA](crate::ssa) itself: the loops are structured, so
//! block parameters are known where a loop opens. Three things make the result good without an
//! optimiser behind it:
//!
//! - **Regions** ([`region`]): each loop level has a place to insert code before it. Whatever is pure
//!   is emitted at the outermost level where its operands are known, and only once.
//! - **Addresses** ([`address`]): an affine index is split by loop level into partial addresses, so
//!   that an innermost access is one machine operand, base + scaled index + displacement.
//! - **Register tiles** ([`registers`]): register buffers are SSA values, whole vectors where they are
//!   used as such, carried round loops as block parameters.
//!
//! Loops and branches become blocks in [`control`]. Vector loops go through the [vector form](crate::vector):
//! [`vector_loops`] cuts them into pieces, [`lanes`] writes each piece, whose [`loads`] stand in a file of their own;
//! [`transposed`] does several iterations of a loop around one at a time, where that reads memory in its order. The meaning
//! of one scalar function on scalars is in [`scalar`], on vectors in [`vector_functions`]. [`lines`] knows, if it is asked
//! for, which statement each instruction was written for.

mod address;
mod control;
mod elements;
mod lanes;
mod lines;
mod loads;
mod region;
mod registers;
mod scalar;
mod transposed;
mod vector_functions;
mod vector_loops;

use std::rc::Rc;

use cranelift_entity::packed_option::PackedOption;
use cranelift_entity::{PrimaryMap, SecondaryMap};
use rustc_hash::FxHashMap;
use windlass_ir::DType;
use windlass_ir::loops::{
    Block, Buffer, Index, Kernel, LoopKind, Native, Role, Stmt, Val, check_expanded, expand_kernel,
    expand_with_origins,
};

use self::lines::Lines;
use self::region::{LoopRegion, Region, RegionKind};
use self::registers::{Carried, RegisterFile};
use crate::error::Error;
use crate::ssa::{self, Element, End, Function, Op, Type, Value};
use crate::vector::Body;

/// Room for so many instructions is made at once.
const INSTRUCTIONS: usize = 512;

/// The most bytes of stack that one kernel's local arrays may take.
pub(crate) const STACK_LIMIT: usize = 384 << 10;

/// What the emitter has to know of whoever takes its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Bytes of a vector; 0 if there are none.
    pub vector_bytes: usize,
    /// Whether the first lane of a vector is its lowest byte.
    pub little_endian: bool,
    /// Whether it has [`Op::Dot4`].
    pub byte_products: bool,
    /// With how many masks code may load and store as many lanes as it likes, not only one, two, four and so on; one mask
    /// is for one number of lanes.
    pub masks: usize,
    /// Whether it has [`Op::LoadWhere`], [`Op::Permute`] and [`Op::Evens`].
    pub picks_lanes: bool,
    /// Whether it has all comparisons, extremes and conversions of vectors of 64-bit integers.
    pub has_longs: bool,
    /// What functions it has that not all machines have.
    pub native: Native,
}

impl Machine {
    /// The vector of an element type. Halves are their bits; a bool is a mask of bytes in memory order, but may
    /// be kept in wider lanes.
    fn vector_type(self, dtype: DType) -> Type {
        Type::vector(scalar_type(dtype).element(), self.vector_bytes)
    }
}

/// The function of a kernel. It takes a table of pointers to the kernel's parameters, and the range of the
/// parallel loop.
pub fn emit(kernel: &Kernel, machine: Machine) -> Result<Function, Error> {
    let native = machine.native;
    let expanded = check_expanded(kernel, native).is_err().then(|| expand_kernel(kernel, native));
    let mut emitter = Emitter::new(expanded.as_ref().unwrap_or(kernel), machine, Lines::default())?;
    emitter.kernel()?;
    Ok(emitter.func)
}

/// The same function, whose instructions say which line of the kernel's text each was written for.
pub fn emit_with_lines(kernel: &Kernel, machine: Machine) -> Result<Function, Error> {
    let (kernel, origins) = expand_with_origins(kernel, machine.native);
    let mut emitter = Emitter::new(&kernel, machine, Lines::new(&kernel, &origins))?;
    emitter.kernel()?;
    Ok(emitter.func)
}

/// What a loop variable is bound to: `base + offset`, or just the offset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Binding {
    base: Option<Value>,
    offset: i64,
}

/// An i64 that may be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Known(i64),
    Value(Value),
}

struct Emitter<'k> {
    kernel: &'k Kernel,
    machine: Machine,
    func: Function,
    regions: Vec<Region>,
    /// The region in which each value is known.
    home: SecondaryMap<Value, u32>,
    vars: FxHashMap<u32, Binding>,
    scalars: SecondaryMap<Val, PackedOption<Value>>,
    /// The vectors of values that differ by lane, in the piece being written.
    vectors: SecondaryMap<Val, PackedOption<Value>>,
    /// Vectors of values that are made before their loads are reached.
    columns: FxHashMap<Val, Value>,
    /// The bits of values that are constants.
    constants: SecondaryMap<Val, Option<u64>>,
    bases: SecondaryMap<Buffer, PackedOption<Value>>,
    /// The address of as many zeros as a vector has bytes.
    zeros: PackedOption<Value>,
    registers: FxHashMap<Buffer, RegisterFile>,
    /// How often each buffer is accessed in the whole kernel.
    accesses: SecondaryMap<Buffer, u32>,
    /// What is known of blocks, by their addresses: most are written several times over.
    carried: FxHashMap<*const Block, Rc<Carried>>,
    bodies: FxHashMap<*const Block, Rc<Body<'k>>>,
    /// The numbers of lanes that masks are for.
    masks: Vec<i64>,
    lines: Lines,
}

impl<'k> Emitter<'k> {
    fn new(kernel: &'k Kernel, machine: Machine, lines: Lines) -> Result<Emitter<'k>, Error> {
        let mut emitter = Emitter {
            kernel,
            machine,
            func: Function {
                insts: PrimaryMap::with_capacity(INSTRUCTIONS),
                values: PrimaryMap::with_capacity(INSTRUCTIONS),
                ..Function::default()
            },
            regions: Vec::new(),
            home: SecondaryMap::new(),
            vars: FxHashMap::default(),
            scalars: SecondaryMap::new(),
            vectors: SecondaryMap::new(),
            columns: FxHashMap::default(),
            constants: SecondaryMap::new(),
            bases: SecondaryMap::new(),
            zeros: PackedOption::default(),
            registers: FxHashMap::default(),
            accesses: SecondaryMap::new(),
            carried: FxHashMap::default(),
            bodies: FxHashMap::default(),
            masks: Vec::new(),
            lines,
        };
        emitter.func.line = emitter.lines.first();
        emitter.scalars.resize(kernel.vals.len());
        emitter.vectors.resize(kernel.vals.len());
        emitter.constants.resize(kernel.vals.len());
        registers::count_accesses(&kernel.body, &mut emitter.accesses);
        let entry = emitter.func.block();
        emitter.func.order.push(entry);
        emitter.regions.push(Region::new(RegionKind::Entry, entry));
        emitter.buffers(entry)?;
        Ok(emitter)
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T, Error> {
        Err(Error::Kernel { kernel: self.kernel.name.clone(), message: message.into() })
    }

    /// Finds the start of every buffer.
    fn buffers(&mut self, entry: ssa::Block) -> Result<(), Error> {
        let table = self.func.param(entry, Type::I64);
        let mut position = 0;
        let mut stack = 0usize;
        for (buffer, data) in &self.kernel.buffers {
            match data.role {
                Role::In | Role::Out | Role::InOut => {
                    let load = Op::Load { offset: position * 8, bytes: 8 };
                    self.bases[buffer] = self.typed(0, load, Type::I64, &[table]).into();
                    position += 1;
                }
                Role::Register => {
                    let file = RegisterFile::new(self.kernel, buffer, self.machine);
                    self.registers.insert(buffer, file);
                }
                Role::Stack => {
                    let bytes = data.len.saturating_mul(data.dtype.size());
                    stack = stack.saturating_add(bytes);
                    if stack > STACK_LIMIT {
                        return self.error(format!("local arrays of {stack} bytes and more"));
                    }
                    let slot = self.func.slots.push(bytes.max(16) as u32);
                    self.bases[buffer] = self.typed(0, Op::StackAddress(slot), Type::I64, &[]).into();
                }
            }
        }
        Ok(())
    }

    fn kernel(&mut self) -> Result<(), Error> {
        let entry = self.regions[0].block;
        let begin = self.func.param(entry, Type::I64);
        let end = self.func.param(entry, Type::I64);
        let kernel = self.kernel;
        match kernel.as_parallel() {
            Some((_, 0, _)) => {}
            Some((var, _, body)) => {
                self.enter(&kernel.body[0]);
                self.open_loop(begin, end, 1, None, body)?;
                let iv = self.loop_region().iv;
                self.vars.insert(var.id, Binding { base: Some(iv), offset: 0 });
                self.block(body)?;
                self.close_loop();
                self.func.line = self.lines.first();
            }
            None => self.block(&kernel.body)?,
        }
        self.end(End::Return);
        Ok(())
    }

    fn block(&mut self, block: &'k Block) -> Result<(), Error> {
        let outer = self.func.line;
        for stmt in block {
            self.enter(stmt);
            match stmt {
                Stmt::Let(binding) => self.scalar_let(binding)?,
                Stmt::Store { buffer, index, val } => self.scalar_store(*buffer, index, *val)?,
                Stmt::Prefetch { buffer, index } => self.prefetch(*buffer, index)?,
                Stmt::If { guards, then, otherwise } => self.branch(guards, then, otherwise)?,
                Stmt::For { var, extent, kind, body } => match (self.index(extent)?, kind) {
                    (Number::Known(n), _) if n <= 0 => {}
                    (Number::Known(1), _) => {
                        self.vars.insert(var.id, Binding::default());
                        self.block(body)?;
                    }
                    (Number::Known(n), LoopKind::Unroll) => {
                        for offset in 0..n {
                            self.vars.insert(var.id, Binding { base: None, offset });
                            self.block(body)?;
                        }
                    }
                    (extent, LoopKind::Vector) if self.machine.vector_bytes > 0 => {
                        self.vector_loop(*var, extent, body)?
                    }
                    (extent, _) => self.serial_loop(*var, extent, body)?,
                },
            }
        }
        self.func.line = outer;
        Ok(())
    }

    fn top(&mut self) -> &mut Region {
        self.regions.last_mut().expect("the entry region is never closed")
    }

    fn top_index(&self) -> usize {
        self.regions.len() - 1
    }

    fn loop_region(&mut self) -> &mut LoopRegion {
        match &mut self.top().kind {
            RegionKind::Loop(region) => region,
            RegionKind::Entry | RegionKind::Branch => unreachable!("the innermost region is a loop"),
        }
    }

    fn index(&mut self, index: &Index) -> Result<Number, Error> {
        let linear = self.linear(index)?;
        Ok(self.sum(linear))
    }
}

/// The type of a scalar.
fn scalar_type(dtype: DType) -> Type {
    Type::scalar(match dtype {
        DType::Bool | DType::I8 | DType::U8 => Element::I8,
        DType::I16 | DType::U16 | DType::F16 | DType::BF16 => Element::I16,
        DType::I32 | DType::U32 => Element::I32,
        DType::I64 | DType::U64 => Element::I64,
        DType::F32 => Element::F32,
        DType::F64 => Element::F64,
    })
}
