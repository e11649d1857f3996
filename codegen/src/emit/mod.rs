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
//! Vector loops go through the [vector form](crate::vector): [`vector_loops`] cuts them into pieces, and [`lanes`] writes
//! each piece; [`transposed`] does several iterations of a loop around one at a time, where that reads memory in its order; the meaning of one scalar function on scalars is in [`scalar`], on vectors in [`vector_functions`]. [`lines`]
//! knows, if it is asked for, which statement each instruction was written for.

mod address;
mod elements;
mod lanes;
mod lines;
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
    Block, Buffer, Guard, Index, Kernel, LoopKind, Role, Stmt, Val, Var, check_expanded, expand_kernel,
    expand_with_origins,
};

use self::lines::Lines;
use self::region::{LoopRegion, Region, RegionKind};
use self::registers::{Carried, RegisterFile};
use crate::error::Error;
use crate::ssa::{self, Condition, Element, End, Function, Op, Target, Type, Value};
use crate::vector::Body;

/// Room for so many instructions is made at once.
const INSTRUCTIONS: usize = 512;

/// The most bytes of stack that one kernel's local arrays may take.
pub(crate) const STACK_LIMIT: usize = 256 << 10;

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
    /// Whether it converts vectors of floats to vectors of i64 and back.
    pub converts_longs: bool,
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
    let expanded = check_expanded(kernel).is_err().then(|| expand_kernel(kernel));
    let mut emitter = Emitter::new(expanded.as_ref().unwrap_or(kernel), machine, Lines::default())?;
    emitter.kernel()?;
    Ok(emitter.func)
}

/// The same function, whose instructions say which line of the kernel's text each was written for.
pub fn emit_with_lines(kernel: &Kernel, machine: Machine) -> Result<Function, Error> {
    let (kernel, origins) = expand_with_origins(kernel);
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

    fn serial_loop(&mut self, var: Var, extent: Number, body: &'k Block) -> Result<(), Error> {
        if let Number::Known(n) = extent
            && n as usize <= registers::WRITTEN_OUT
            && self.needs_constants(var, body)
        {
            for offset in 0..n {
                self.vars.insert(var.id, Binding { base: None, offset });
                self.block(body)?;
            }
            return Ok(());
        }
        let zero = self.int(0);
        if let Number::Known(n) = extent
            && let done @ 1.. = self.transposed_rounds(var, n, body)?
        {
            if done < n {
                let (done, last) = (self.int(done), self.int(n));
                self.rounds(var, (done, last), 1, Some(n), body)?;
            }
            return Ok(());
        }
        let (step, known) = match extent {
            Number::Known(n) => (self.rounds_at_once(body).min(n), Some(n)),
            Number::Value(_) => (1, None),
        };
        let rest = known.map_or(0, |n| n % step);
        let end = match known {
            Some(n) => self.int(n - rest),
            None => self.number(extent),
        };
        self.rounds(var, (zero, end), step, known, body)?;
        if rest > 0 {
            // A loop too: with constants for the variable, what it loads would move out of the loops around, and stay
            // in registers there.
            let last = self.number(extent);
            self.rounds(var, (end, last), 1, known, body)?;
        }
        Ok(())
    }

    /// A loop that does `step` iterations a round.
    fn rounds(
        &mut self,
        var: Var,
        (start, end): (Value, Value),
        step: i64,
        known: Option<i64>,
        body: &'k Block,
    ) -> Result<(), Error> {
        self.open_loop(start, end, step, known, body)?;
        let iv = self.loop_region().iv;
        for offset in 0..step {
            // What another iteration loaded would take a register from the tile until it is used again.
            self.top().cache.retain(|(op, ..), _| !matches!(op, Op::Load { .. }));
            self.vars.insert(var.id, Binding { base: Some(iv), offset });
            self.block(body)?;
        }
        self.close_loop();
        Ok(())
    }

    /// Opens a loop from `start` while below `end`. `known` is a positive number of iterations' bound if
    /// it is certain that there is at least one.
    fn open_loop(
        &mut self,
        start: Value,
        end: Value,
        step: i64,
        known: Option<i64>,
        body: &'k Block,
    ) -> Result<(), Error> {
        debug_assert!(known != Some(0), "a loop that is said to run does");
        let carried = self.carried(&[body]);
        let header = self.func.block();
        let exit = self.func.block();
        let level = self.regions.len() as u32;
        let iv = self.func.param(header, Type::I64);
        self.home[iv] = level;
        let mut args = vec![start];
        let mut chunks = Vec::new();
        for &buffer in &carried.flowing {
            let ty = self.registers[&buffer].ty;
            for at in 0..self.registers[&buffer].chunks.len() {
                args.push(self.chunk_or_zero(buffer, at));
                let param = self.func.param(header, ty);
                self.home[param] = level;
                chunks.push((buffer, at, param));
            }
        }
        let entry = self.top().block;
        let skip = Target { block: exit, args: args[1..].to_vec() };
        let enter = Target { block: header, args };
        let jump = match known {
            Some(_) => End::Jump(enter),
            None => {
                let below = self.at(self.top_index(), Op::Compare(Condition::Lt), &[start, end]);
                End::Branch(below, [enter, skip])
            }
        };
        self.end(jump);
        for &(buffer, at, param) in &chunks {
            self.chunks(buffer)[at] = param.into();
        }
        self.func.order.push(header);
        let region = LoopRegion {
            iv,
            start,
            end,
            step,
            header,
            exit,
            entry,
            derived: Vec::new(),
            carried: chunks.iter().map(|&(buffer, at, _)| (buffer, at)).collect(),
            dropped: carried.own.clone(),
            runs: known.is_some(),
        };
        self.regions.push(Region::new(RegionKind::Loop(region), header));
        Ok(())
    }

    fn close_loop(&mut self) {
        let LoopRegion { iv, end, step, header, exit, derived, carried, dropped, .. } =
            self.loop_region().clone();
        let top = self.top_index();
        let by = self.int(step);
        let next = self.at(top, Op::Add, &[iv, by]);
        let carried_now: Vec<Value> = carried.iter().map(|&(b, at)| self.chunk_or_zero(b, at)).collect();
        let mut back = vec![next];
        back.extend(&carried_now);
        for &(scale, param) in &derived {
            let by = self.int(scale.wrapping_mul(step));
            back.push(self.at(top, Op::Add, &[param, by]));
        }
        let again = self.at(top, Op::Compare(Condition::Lt), &[next, end]);
        let targets = [Target { block: header, args: back }, Target { block: exit, args: carried_now }];
        self.end(End::Branch(again, targets));
        self.regions.pop();
        self.join(exit, &carried);
        for buffer in dropped {
            self.forget(buffer);
        }
    }

    /// Goes on in a block whose parameters are parts of register buffers.
    fn join(&mut self, block: ssa::Block, parts: &[(Buffer, usize)]) {
        self.func.order.push(block);
        self.top().block = block;
        let level = self.top_index() as u32;
        for &(buffer, at) in parts {
            let param = self.func.param(block, self.registers[&buffer].ty);
            self.home[param] = level;
            self.chunks(buffer)[at] = param.into();
        }
    }

    fn branch(&mut self, guards: &[Guard], then: &'k Block, otherwise: &'k Block) -> Result<(), Error> {
        let condition = match self.guards(guards)? {
            None => return self.block(then),
            Some(Number::Known(0)) => return self.block(otherwise),
            Some(Number::Known(_)) => return self.block(then),
            Some(Number::Value(condition)) => condition,
        };
        let known = self.carried(&[then, otherwise]);
        let carried = &known.flowing;
        let before: Vec<RegisterFile> = carried.iter().map(|b| self.registers[b].clone()).collect();
        let parts: Vec<(Buffer, usize)> = carried
            .iter()
            .flat_map(|&b| (0..self.registers[&b].chunks.len()).map(move |at| (b, at)))
            .collect();
        let sides = self.fork(condition);
        let join = self.func.block();
        for (side, block) in sides.into_iter().zip([then, otherwise]) {
            for (&buffer, file) in carried.iter().zip(&before) {
                self.registers.insert(buffer, file.clone());
            }
            self.enter_side(side);
            self.block(block)?;
            let args = parts.iter().map(|&(buffer, at)| self.chunk_or_zero(buffer, at)).collect();
            self.leave_side(Target { block: join, args });
            for &buffer in &known.own {
                self.forget(buffer);
            }
        }
        self.join(join, &parts);
        Ok(())
    }

    /// Ends the block with a branch to two new ones.
    fn fork(&mut self, condition: Value) -> [ssa::Block; 2] {
        let sides = [(), ()].map(|()| self.func.block());
        self.end(End::Branch(condition, sides.map(|block| Target { block, args: Vec::new() })));
        sides
    }

    /// Opens one side of a branch.
    fn enter_side(&mut self, side: ssa::Block) {
        self.func.order.push(side);
        self.regions.push(Region::new(RegionKind::Branch, side));
    }

    /// Closes it.
    fn leave_side(&mut self, join: Target) {
        self.end(End::Jump(join));
        self.regions.pop();
    }

    /// Ends the current block.
    fn end(&mut self, end: End) {
        let block = self.top().block;
        self.func.end(block, end);
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
