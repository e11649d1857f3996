//! Kernels as Cranelift functions.
//!
//! The emitter walks a kernel once and writes CLIF in SSA form itself: the loops are structured, so
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
//! Vector loops go through the [vector form](crate::vector) in [`lanes`]; the meaning of one scalar
//! function on scalars is in [`scalar`], on vectors in [`vector_functions`].

mod address;
mod lanes;
mod region;
mod registers;
mod scalar;
mod vector_functions;

use std::collections::HashMap;

use cranelift_codegen::cursor::FuncCursor;
use cranelift_codegen::ir::{
    self, AbiParam, BlockArg, Function, InstBuilder, MemFlagsData, Signature, StackSlot, StackSlotData,
    StackSlotKind, Type, types,
};
use cranelift_codegen::isa::{CallConv, TargetIsa};
use cranelift_entity::SecondaryMap;
use cranelift_entity::packed_option::PackedOption;
use windlass_ir::DType;
use windlass_ir::loops::{
    Block, Buffer, Guard, Index, Kernel, LoopKind, Role, Stmt, Val, Var, expand_kernel,
};

use self::region::{LoopRegion, Region, RegionKind};
use self::registers::RegisterFile;
use crate::error::Error;

/// The most bytes of stack that one kernel's local arrays may take.
const STACK_LIMIT: usize = 256 << 10;

/// What an emitter has to know of its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// How kernels are called.
    pub call_conv: CallConv,
    /// Whether there are 128-bit vectors.
    pub vectors: bool,
    /// Whether the first lane of a vector is its lowest byte.
    pub little_endian: bool,
}

impl Machine {
    /// The facts about an instruction set.
    pub fn new(isa: &dyn TargetIsa) -> Machine {
        let has_v = isa.isa_flags().iter().any(|f| f.name == "has_v" && f.as_bool() == Some(true));
        let is_riscv = matches!(isa.triple().architecture, target_lexicon::Architecture::Riscv64(_));
        Machine {
            call_conv: isa.default_call_conv(),
            vectors: !is_riscv || has_v,
            little_endian: isa.endianness() == ir::Endianness::Little,
        }
    }
}

/// The signature of every kernel: a table of pointers, and the range of the parallel loop.
pub fn signature(call_conv: CallConv) -> Signature {
    let mut signature = Signature::new(call_conv);
    signature.params.extend([AbiParam::new(types::I64); 3]);
    signature
}

/// The function of a kernel.
pub fn emit(kernel: &Kernel, machine: Machine) -> Result<Function, Error> {
    let kernel = expand_kernel(kernel);
    let mut emitter = Emitter::new(&kernel, machine)?;
    emitter.kernel()?;
    Ok(emitter.func)
}

/// What a loop variable is bound to: `base + offset`, or just the offset.
#[derive(Clone, Copy, Debug, Default)]
struct Binding {
    base: Option<ir::Value>,
    offset: i64,
}

/// An i64 that may be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Known(i64),
    Value(ir::Value),
}

struct Emitter<'k> {
    kernel: &'k Kernel,
    machine: Machine,
    func: Function,
    regions: Vec<Region>,
    /// The region in which each CLIF value is known.
    home: SecondaryMap<ir::Value, u32>,
    vars: HashMap<u32, Binding>,
    scalars: SecondaryMap<Val, PackedOption<ir::Value>>,
    /// The bits of values that are constants.
    constants: SecondaryMap<Val, Option<u64>>,
    bases: SecondaryMap<Buffer, PackedOption<ir::Value>>,
    registers: SecondaryMap<Buffer, RegisterFile>,
    /// How often each buffer is accessed in the whole kernel.
    accesses: SecondaryMap<Buffer, u32>,
}

impl<'k> Emitter<'k> {
    fn new(kernel: &'k Kernel, machine: Machine) -> Result<Emitter<'k>, Error> {
        let func = Function::with_name_signature(ir::UserFuncName::default(), signature(machine.call_conv));
        let mut emitter = Emitter {
            kernel,
            machine,
            func,
            regions: Vec::new(),
            home: SecondaryMap::new(),
            vars: HashMap::new(),
            scalars: SecondaryMap::new(),
            constants: SecondaryMap::new(),
            bases: SecondaryMap::new(),
            registers: SecondaryMap::new(),
            accesses: SecondaryMap::new(),
        };
        registers::count_accesses(&kernel.body, &mut emitter.accesses);
        let entry = emitter.func.dfg.make_block();
        emitter.func.layout.append_block(entry);
        emitter.regions.push(Region::new(RegionKind::Entry, entry));
        emitter.buffers(entry)?;
        Ok(emitter)
    }

    fn error<T>(&self, message: impl Into<String>) -> Result<T, Error> {
        Err(Error::Kernel { kernel: self.kernel.name.clone(), message: message.into() })
    }

    /// Finds the start of every buffer.
    fn buffers(&mut self, entry: ir::Block) -> Result<(), Error> {
        let table = self.func.dfg.append_block_param(entry, types::I64);
        let mut position = 0;
        let mut stack = 0usize;
        for (buffer, data) in &self.kernel.buffers {
            match data.role {
                Role::In | Role::Out | Role::InOut => {
                    let flags = MemFlagsData::trusted().with_readonly();
                    let base = self.at(0, |ins| ins.load(types::I64, flags, table, position * 8));
                    self.bases[buffer] = base.into();
                    position += 1;
                }
                Role::Register => {
                    let file = RegisterFile::new(self.kernel, buffer, self.machine.vectors);
                    self.registers[buffer] = file;
                }
                Role::Stack => {
                    let bytes = data.len.saturating_mul(data.dtype.size());
                    stack = stack.saturating_add(bytes);
                    if stack > STACK_LIMIT {
                        return self.error(format!("local arrays of {stack} bytes and more"));
                    }
                    let slot = self.slot(bytes.max(16));
                    let base = self.at(0, |ins| ins.stack_addr(types::I64, slot, 0));
                    self.bases[buffer] = base.into();
                }
            }
        }
        Ok(())
    }

    fn slot(&mut self, bytes: usize) -> StackSlot {
        // A slot is aligned to at most what the stack pointer is.
        let data = StackSlotData::new(StackSlotKind::ExplicitSlot, bytes as u32, 4);
        self.func.create_sized_stack_slot(data)
    }

    fn kernel(&mut self) -> Result<(), Error> {
        let entry = self.regions[0].block;
        let begin = self.func.dfg.append_block_param(entry, types::I64);
        let end = self.func.dfg.append_block_param(entry, types::I64);
        let kernel = self.kernel;
        match kernel.as_parallel() {
            Some((_, 0, _)) => {}
            Some((var, _, body)) => {
                self.open_loop(begin, end, 1, None, body)?;
                let iv = self.loop_region().iv;
                self.vars.insert(var.id, Binding { base: Some(iv), offset: 0 });
                self.block(body)?;
                self.close_loop();
            }
            None => self.block(&kernel.body)?,
        }
        self.ins(|ins| ins.return_(&[]));
        Ok(())
    }

    fn block(&mut self, block: &'k Block) -> Result<(), Error> {
        for stmt in block {
            match stmt {
                Stmt::Let(binding) => self.scalar_let(binding)?,
                Stmt::Store { buffer, index, val } => self.scalar_store(*buffer, index, *val)?,
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
                    (extent, LoopKind::Vector) if self.machine.vectors => {
                        self.vector_loop(*var, extent, body)?
                    }
                    (extent, _) => self.serial_loop(*var, extent, body)?,
                },
            }
        }
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
        let (step, known) = match extent {
            Number::Known(n) => (self.rounds_at_once(body).min(n), Some(n)),
            Number::Value(_) => (1, None),
        };
        let rest = known.map_or(0, |n| n % step);
        let end = match known {
            Some(n) => self.int(n - rest),
            None => self.number(extent),
        };
        self.open_loop(zero, end, step, known, body)?;
        let iv = self.loop_region().iv;
        for offset in 0..step {
            self.vars.insert(var.id, Binding { base: Some(iv), offset });
            self.block(body)?;
        }
        self.close_loop();
        for offset in known.map_or(0..0, |n| n - rest..n) {
            self.vars.insert(var.id, Binding { base: None, offset });
            self.block(body)?;
        }
        Ok(())
    }

    /// How many iterations to write out at once in a loop that carries a register tile. Each iteration
    /// leaves the tile in other registers than it found it in (the fused multiply-add overwrites a
    /// factor, not the sum), so going round costs a move per vector of the tile. Eight rounds measured no faster
    /// than four (`cargo bench --bench products`).
    fn rounds_at_once(&self, body: &'k Block) -> i64 {
        let (carried, _) = self.carried(&[body]);
        let vectors: usize = carried
            .iter()
            .map(|&b| &self.registers[b])
            .filter(|file| file.lanes > 1)
            .map(|file| file.chunks.len())
            .sum();
        match registers::straight_length(body) {
            Some(length) if vectors > 1 => match length {
                0..=160 => 4,
                161..=400 => 2,
                _ => 1,
            },
            _ => 1,
        }
    }

    /// Opens a loop from `start` while below `end`. `known` is a positive number of iterations' bound if
    /// it is certain that there is at least one.
    fn open_loop(
        &mut self,
        start: ir::Value,
        end: ir::Value,
        step: i64,
        known: Option<i64>,
        body: &'k Block,
    ) -> Result<(), Error> {
        let (carried, dropped) = self.carried(&[body]);
        let header = self.func.dfg.make_block();
        let exit = self.func.dfg.make_block();
        let level = self.regions.len() as u32;
        let iv = self.func.dfg.append_block_param(header, types::I64);
        self.home[iv] = level;
        let mut args = vec![BlockArg::Value(start)];
        let mut chunks = Vec::new();
        for &buffer in &carried {
            for at in 0..self.registers[buffer].chunks.len() {
                let value = self.chunk_or_zero(buffer, at);
                args.push(BlockArg::Value(value));
                let ty = self.registers[buffer].ty;
                let param = self.func.dfg.append_block_param(header, ty);
                self.home[param] = level;
                chunks.push((buffer, at, param));
            }
        }
        let entry = match known {
            Some(_) => self.ins(|ins| ins.jump(header, &args)),
            None => {
                let below = self.top_value(|ins| ins.icmp(ir::condcodes::IntCC::SignedLessThan, start, end));
                self.ins(|ins| ins.brif(below, header, &args, exit, &args[1..]))
            }
        };
        self.top().before = Some(entry);
        for &(buffer, at, param) in &chunks {
            self.registers[buffer].chunks[at] = param.into();
        }
        self.func.layout.append_block(header);
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
            dropped,
            runs: known.is_some(),
        };
        self.regions.push(Region::new(RegionKind::Loop(region), header));
        Ok(())
    }

    fn close_loop(&mut self) {
        let LoopRegion { iv, end, step, header, exit, derived, carried, dropped, .. } =
            self.loop_region().clone();
        let next = self.top_value(|ins| ins.iadd_imm_s(iv, step));
        let mut back = vec![BlockArg::Value(next)];
        let carried_now: Vec<BlockArg> =
            carried.iter().map(|&(b, at)| BlockArg::Value(self.chunk_or_zero(b, at))).collect();
        back.extend(&carried_now);
        for &(scale, param) in &derived {
            let value = self.top_value(|ins| ins.iadd_imm_s(param, scale.wrapping_mul(step)));
            back.push(BlockArg::Value(value));
        }
        let again = self.top_value(|ins| ins.icmp(ir::condcodes::IntCC::SignedLessThan, next, end));
        self.ins(|ins| ins.brif(again, header, &back, exit, &carried_now));
        self.regions.pop();
        self.func.layout.append_block(exit);
        self.top().block = exit;
        self.top().before = None;
        let level = self.regions.len() as u32 - 1;
        for &(buffer, at) in &carried {
            let param = self.func.dfg.append_block_param(exit, self.registers[buffer].ty);
            self.home[param] = level;
            self.registers[buffer].chunks[at] = param.into();
        }
        for buffer in dropped {
            self.registers[buffer].forget();
        }
    }

    fn branch(&mut self, guards: &[Guard], then: &'k Block, otherwise: &'k Block) -> Result<(), Error> {
        let condition = match self.guards(guards)? {
            None => return self.block(then),
            Some(Number::Known(0)) => return self.block(otherwise),
            Some(Number::Known(_)) => return self.block(then),
            Some(Number::Value(condition)) => condition,
        };
        let (carried, dropped) = self.carried(&[then, otherwise]);
        let before: Vec<RegisterFile> = carried.iter().map(|&b| self.registers[b].clone()).collect();
        let join = self.func.dfg.make_block();
        let sides = [then, otherwise].map(|_| self.func.dfg.make_block());
        let entry = self.ins(|ins| ins.brif(condition, sides[0], &[], sides[1], &[]));
        self.top().before = Some(entry);
        for (side, block) in sides.into_iter().zip([then, otherwise]) {
            for (&buffer, file) in carried.iter().zip(&before) {
                self.registers[buffer] = file.clone();
            }
            self.func.layout.append_block(side);
            self.regions.push(Region::new(RegionKind::Branch, side));
            self.block(block)?;
            let mut args = Vec::new();
            for &buffer in &carried {
                for at in 0..self.registers[buffer].chunks.len() {
                    args.push(BlockArg::Value(self.chunk_or_zero(buffer, at)));
                }
            }
            self.ins(|ins| ins.jump(join, &args));
            self.regions.pop();
            for &buffer in &dropped {
                self.registers[buffer].forget();
            }
        }
        self.func.layout.append_block(join);
        self.top().block = join;
        self.top().before = None;
        let level = self.regions.len() as u32 - 1;
        for &buffer in &carried {
            for at in 0..self.registers[buffer].chunks.len() {
                let param = self.func.dfg.append_block_param(join, self.registers[buffer].ty);
                self.home[param] = level;
                self.registers[buffer].chunks[at] = param.into();
            }
        }
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

    /// Emits an instruction without a result at the current position.
    fn ins(
        &mut self,
        build: impl FnOnce(ir::InsertBuilder<'_, &mut FuncCursor<'_>>) -> ir::Inst,
    ) -> ir::Inst {
        self.effect(self.top_index(), build)
    }

    /// Emits a value at the current position.
    fn top_value(
        &mut self,
        build: impl FnOnce(ir::InsertBuilder<'_, &mut FuncCursor<'_>>) -> ir::Value,
    ) -> ir::Value {
        self.at(self.top_index(), build)
    }

    fn index(&mut self, index: &Index) -> Result<Number, Error> {
        let linear = self.linear(index)?;
        Ok(self.sum(linear))
    }
}

/// The CLIF type of a scalar.
fn scalar_type(dtype: DType) -> Type {
    match dtype {
        DType::Bool | DType::I8 | DType::U8 => types::I8,
        DType::I16 | DType::U16 | DType::F16 | DType::BF16 => types::I16,
        DType::I32 | DType::U32 => types::I32,
        DType::I64 | DType::U64 => types::I64,
        DType::F32 => types::F32,
        DType::F64 => types::F64,
    }
}
