//! SSA to Cranelift's IR, for every target, with vectors of 128 bits.
//!
//! One instruction becomes one, or a few where Cranelift has none that does it. Two things are arranged for
//! its instruction selection: a load that is spread to a vector can be one machine instruction, and a fused
//! multiply-add overwrites the factor that is used no more.

use cranelift_codegen::cursor::{Cursor, FuncCursor};
use cranelift_codegen::ir::condcodes::{FloatCC, IntCC};
use cranelift_codegen::ir::immediates::{Ieee32, Ieee64};
use cranelift_codegen::ir::{
    self, AbiParam, BlockArg, InstBuilder, MemFlagsData, Signature, StackSlotData, StackSlotKind, types,
};
use cranelift_codegen::isa::{CallConv, TargetIsa};
use cranelift_codegen::{Final, MachSrcLoc};
use cranelift_entity::SecondaryMap;
use cranelift_entity::packed_option::PackedOption;
use target_lexicon::Architecture;
use windlass_ir::loops::Native;

use crate::emit::Machine;
use crate::listing::Lines;
use crate::ssa::{Condition, Element, End, Function, InstData, Line, Op, Target, Type, Value};

/// Bytes of a vector.
const VECTOR_BYTES: usize = 16;

/// What the emitter has to know of a target.
pub fn machine(isa: &dyn TargetIsa) -> Machine {
    let has_v = isa.isa_flags().iter().any(|f| f.name == "has_v" && f.as_bool() == Some(true));
    let is_riscv = matches!(isa.triple().architecture, Architecture::Riscv64(_));
    Machine {
        vector_bytes: if !is_riscv || has_v { VECTOR_BYTES } else { 0 },
        little_endian: isa.endianness() == ir::Endianness::Little,
        byte_products: false,
        masks: 0,
        picks_lanes: false,
        has_longs: false,
        native: Native::default(),
    }
}

/// The signature of every kernel: a table of pointers, and the range of the parallel loop.
pub fn signature(call_conv: CallConv) -> Signature {
    let mut signature = Signature::new(call_conv);
    signature.params.extend([AbiParam::new(types::I64); 3]);
    signature
}

/// A kernel's function in Cranelift's IR.
pub fn function(ssa: &Function, isa: &dyn TargetIsa) -> ir::Function {
    let signature = signature(isa.default_call_conv());
    let mut func = ir::Function::with_name_signature(ir::UserFuncName::default(), signature);
    let mut blocks = SecondaryMap::with_default(ir::Block::from_u32(0));
    let mut values: SecondaryMap<Value, PackedOption<ir::Value>> = SecondaryMap::new();
    for (block, data) in &ssa.blocks {
        let made = func.dfg.make_block();
        blocks[block] = made;
        for &param in &data.params {
            values[param] = func.dfg.append_block_param(made, clif_type(ssa.ty(param))).into();
        }
    }
    let mut slots = SecondaryMap::with_default(ir::StackSlot::from_u32(0));
    for (slot, &bytes) in &ssa.slots {
        // A slot is aligned to at most what the stack pointer is.
        slots[slot] = func.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 4));
    }
    let endianness = isa.endianness();
    let uses = count_uses(ssa);
    let cursor = FuncCursor::new(&mut func);
    let mut translator = Translator { ssa, cursor, blocks, values, slots, endianness, uses };
    for &block in &ssa.order {
        translator.block(block);
    }
    func
}

/// Where the code of each line of a kernel starts, if instructions know theirs. What they were not written for, such as
/// the frame, is for the kernel's own line.
pub fn lines(locations: &[MachSrcLoc<Final>]) -> Lines {
    let mut lines = Lines::new();
    if locations.iter().all(|location| location.loc.is_default()) {
        return lines;
    }
    for location in locations {
        let line = match location.loc.is_default() {
            true => Line::from_u32(0),
            false => Line::from_u32(location.loc.bits()),
        };
        if lines.last().is_none_or(|&(_, last)| last != line) {
            lines.push((location.start, line));
        }
    }
    lines
}

fn count_uses(ssa: &Function) -> SecondaryMap<Value, u32> {
    let mut uses = SecondaryMap::new();
    for &block in &ssa.order {
        let data = &ssa.blocks[block];
        let args = data.insts.iter().flat_map(|&inst| &ssa.insts[inst].args);
        let ends = data.end.targets().iter().flat_map(|target| &target.args);
        args.chain(ends).for_each(|&value| uses[value] += 1);
    }
    uses
}

/// Cranelift's type.
fn clif_type(ty: Type) -> ir::Type {
    let lane = match ty.element() {
        Element::I8 => types::I8,
        Element::I16 => types::I16,
        Element::I32 => types::I32,
        Element::I64 => types::I64,
        Element::F32 => types::F32,
        Element::F64 => types::F64,
    };
    lane.by(ty.lanes() as u32).expect("vectors have 128 bits")
}

/// How generated code accesses memory: checked by the verifier of kernels, so it cannot fault, and
/// with whatever alignment the caller's buffers have.
fn memory() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

struct Translator<'s, 'f> {
    ssa: &'s Function,
    cursor: FuncCursor<'f>,
    blocks: SecondaryMap<crate::ssa::Block, ir::Block>,
    values: SecondaryMap<Value, PackedOption<ir::Value>>,
    slots: SecondaryMap<crate::ssa::Slot, ir::StackSlot>,
    endianness: ir::Endianness,
    uses: SecondaryMap<Value, u32>,
}

impl Translator<'_, '_> {
    fn block(&mut self, block: crate::ssa::Block) {
        let data = &self.ssa.blocks[block];
        self.cursor.insert_block(self.blocks[block]);
        let mut before: Option<&InstData> = None;
        for &inst in &data.insts {
            let inst = &self.ssa.insts[inst];
            let args: Vec<ir::Value> = inst.args.iter().map(|&a| self.value(a)).collect();
            self.enter(inst.line);
            match (inst.op, inst.result) {
                (Op::Store { offset, bytes }, _) => self.store(&args, inst.args[0], offset, bytes),
                // There is no such instruction.
                (Op::Prefetch { .. }, _) => {}
                (_, Some(result)) => {
                    let value = self.inst(inst, self.ssa.ty(result), &args);
                    let is_load = |before: &InstData| {
                        matches!(before.op, Op::Load { .. }) && before.result == Some(inst.args[0])
                    };
                    let settle = inst.op == Op::Splat && self.uses[result] > 1 && before.is_some_and(is_load);
                    self.values[result] = if settle { self.settle(value) } else { value }.into();
                }
                (op, None) => unreachable!("{op} gives a result"),
            }
            before = Some(inst);
        }
        self.enter(data.line);
        match &data.end {
            End::Open => unreachable!("every block is ended"),
            End::Jump(target) => {
                let (block, args) = self.target(target);
                self.cursor.ins().jump(block, &args);
            }
            End::Branch(condition, [then, otherwise]) => {
                let condition = self.value(*condition);
                let ((then, first), (otherwise, second)) = (self.target(then), self.target(otherwise));
                self.cursor.ins().brif(condition, then, &first, otherwise, &second);
            }
            End::Return => {
                self.cursor.ins().return_(&[]);
            }
        }
    }

    /// What is written from here on is for a line of the kernel.
    fn enter(&mut self, line: PackedOption<Line>) {
        if let Some(line) = line.expand() {
            self.cursor.set_srcloc(ir::SourceLoc::new(line.as_u32()));
        }
    }

    fn value(&self, value: Value) -> ir::Value {
        self.values[value].expect("definitions come before uses in the order of blocks")
    }

    fn target(&self, target: &Target) -> (ir::Block, Vec<BlockArg>) {
        let args = target.args.iter().map(|&arg| BlockArg::Value(self.value(arg))).collect();
        (self.blocks[target.block], args)
    }

    /// Ends the block with a value just loaded and spread, and goes on with it as a parameter of the next.
    /// A load is only made part of the instruction that spreads it if that has a single use, which the
    /// parameter is; the jump itself vanishes.
    fn settle(&mut self, spread: ir::Value) -> ir::Value {
        let ty = self.cursor.func.dfg.value_type(spread);
        let next = self.cursor.func.dfg.make_block();
        let param = self.cursor.func.dfg.append_block_param(next, ty);
        self.cursor.ins().jump(next, &[BlockArg::Value(spread)]);
        self.cursor.insert_block(next);
        param
    }

    fn as_type(&mut self, ty: ir::Type, x: ir::Value) -> ir::Value {
        let have = self.cursor.func.dfg.value_type(x);
        let flags = match have.is_vector() && ty.is_vector() {
            true => MemFlagsData::new().with_endianness(self.endianness),
            false => MemFlagsData::new(),
        };
        match have == ty {
            true => x,
            false => self.cursor.ins().bitcast(ty, flags, x),
        }
    }

    /// A scalar of some of a vector's bytes, and the vector of such scalars.
    fn part(bytes: u8) -> (ir::Type, ir::Type) {
        match bytes {
            8 => (types::F64, types::F64X2),
            4 => (types::F32, types::F32X4),
            _ => (types::I16, types::I16X8),
        }
    }

    fn store(&mut self, args: &[ir::Value], stored: Value, offset: i32, bytes: u8) {
        let (mut value, address) = (args[0], args[1]);
        if self.ssa.ty(stored).bytes() != usize::from(bytes) {
            let (_, wide) = Self::part(bytes);
            let wide = self.as_type(wide, value);
            value = self.cursor.ins().extractlane(wide, 0);
        }
        self.cursor.ins().store(memory(), value, address, offset);
    }

    fn constant(&mut self, ty: Type, bits: u64) -> ir::Value {
        if ty.is_vector() {
            let lane = &bits.to_le_bytes()[..ty.element().bytes()];
            let bytes: Vec<u8> = lane.iter().copied().cycle().take(ty.bytes()).collect();
            return self.bytes(ty, bytes);
        }
        match ty.element() {
            Element::F32 => self.cursor.ins().f32const(Ieee32::with_bits(bits as u32)),
            Element::F64 => self.cursor.ins().f64const(Ieee64::with_bits(bits)),
            _ => self.cursor.ins().iconst(clif_type(ty), bits as i64),
        }
    }

    fn bytes(&mut self, ty: Type, bytes: Vec<u8>) -> ir::Value {
        let constant = self.cursor.func.dfg.constants.insert(bytes.into());
        self.cursor.ins().vconst(clif_type(ty), constant)
    }

    fn inst(&mut self, inst: &InstData, result: Type, args: &[ir::Value]) -> ir::Value {
        let ty = clif_type(result);
        // The type of the operands.
        let of = inst.args.first().map_or(result, |&a| self.ssa.ty(a));
        let float = of.is_float();
        let a = args.first().copied().unwrap_or(ir::Value::from_u32(0));
        let b = args.get(1).copied().unwrap_or(a);
        let c = args.get(2).copied().unwrap_or(a);
        match inst.op {
            Op::Store { .. } | Op::Prefetch { .. } => unreachable!("{} gives nothing", inst.op),
            Op::Const(bits) => return self.constant(result, bits),
            Op::Iota { step, group } => {
                let size = result.element().bytes();
                let lane =
                    |i: i64| (i / i64::from(group)).wrapping_mul(step).to_le_bytes().into_iter().take(size);
                let mut bytes: Vec<u8> = (0..result.lanes() as i64).flat_map(lane).collect();
                if self.endianness == ir::Endianness::Big {
                    bytes.reverse();
                }
                return self.bytes(result, bytes);
            }
            Op::Load { offset, bytes } if result.bytes() != usize::from(bytes) => {
                let (part, wide) = Self::part(bytes);
                let loaded = self.cursor.ins().load(part, memory(), a, offset);
                let vector = self.cursor.ins().scalar_to_vector(wide, loaded);
                return self.as_type(ty, vector);
            }
            Op::Blend => {
                let mask = self.as_type(ty, a);
                return self.cursor.ins().bitselect(mask, b, c);
            }
            // This is the form that is selected as one instruction.
            Op::SelectLess | Op::SelectGreater => {
                let first = match inst.op {
                    Op::SelectLess => self.cursor.ins().fcmp(FloatCC::LessThan, a, b),
                    _ => self.cursor.ins().fcmp(FloatCC::LessThan, b, a),
                };
                let first = self.as_type(ty, first);
                return self.cursor.ins().bitselect(first, a, b);
            }
            Op::Lanes => {
                let first = self.cursor.ins().splat(ty, a);
                return args.iter().enumerate().skip(1).fold(first, |vector, (lane, &element)| {
                    self.cursor.ins().insertlane(vector, element, lane as u8)
                });
            }
            Op::Drop(count) => {
                let lanes: Vec<ir::Value> = (usize::from(count)..of.lanes())
                    .map(|lane| self.cursor.ins().extractlane(a, lane as u8))
                    .collect();
                let first = self.cursor.ins().splat(ty, lanes[0]);
                return lanes.iter().enumerate().skip(1).fold(first, |vector, (lane, &element)| {
                    self.cursor.ins().insertlane(vector, element, lane as u8)
                });
            }
            Op::Merge { at, count } => {
                return (0..count).fold(b, |vector, lane| {
                    let element = self.cursor.ins().extractlane(a, lane);
                    self.cursor.ins().insertlane(vector, element, at + lane)
                });
            }
            Op::SignExtend | Op::ZeroExtend if result.is_vector() => return self.widen(inst.op, ty, a),
            Op::Truncate if result.is_vector() => return self.narrow(ty, a),
            Op::Bitcast => return self.as_type(ty, a),
            Op::Dot4
            | Op::LoadWhere { .. }
            | Op::Permute
            | Op::Evens(_)
            | Op::FromHalf
            | Op::ToHalf
            | Op::ZipLow
            | Op::ZipHigh => {
                unreachable!("the machine has no such instruction")
            }
            Op::Dot2 => {
                let [a, b] = [a, b].map(|words| self.as_type(types::I16X8, words));
                let [low_a, low_b] = [a, b].map(|halves| self.cursor.ins().swiden_low(halves));
                let [high_a, high_b] = [a, b].map(|halves| self.cursor.ins().swiden_high(halves));
                let low = self.cursor.ins().imul(low_a, low_b);
                let high = self.cursor.ins().imul(high_a, high_b);
                return self.cursor.ins().iadd_pairwise(low, high);
            }
            Op::Fma => {
                // The instruction overwrites its first factor. One that is spread may be used again.
                let spread = |v: Value| self.ssa.def(v).is_some_and(|def| def.op == Op::Splat);
                let swap = spread(inst.args[0]) && !spread(inst.args[1]);
                let (a, b) = if swap { (b, a) } else { (a, b) };
                return self.cursor.ins().fma(a, b, c);
            }
            _ => {}
        }
        let slot = match inst.op {
            Op::StackAddress(slot) => Some(self.slots[slot]),
            _ => None,
        };
        let ins = self.cursor.ins();
        match inst.op {
            Op::StackAddress(_) => ins.stack_addr(ty, slot.expect("as above"), 0),
            Op::Load { offset, .. } => ins.load(ty, memory(), a, offset),
            Op::Add if float => ins.fadd(a, b),
            Op::Add => ins.iadd(a, b),
            Op::Sub if float => ins.fsub(a, b),
            Op::Sub => ins.isub(a, b),
            Op::Mul if float => ins.fmul(a, b),
            Op::Mul => ins.imul(a, b),
            Op::Div if float => ins.fdiv(a, b),
            Op::Div => ins.sdiv(a, b),
            Op::DivUnsigned => ins.udiv(a, b),
            Op::Min if float => ins.fmin(a, b),
            Op::Min => ins.smin(a, b),
            Op::Max if float => ins.fmax(a, b),
            Op::Max => ins.smax(a, b),
            Op::MinUnsigned => ins.umin(a, b),
            Op::MaxUnsigned => ins.umax(a, b),
            Op::Neg if float => ins.fneg(a),
            Op::Neg => ins.ineg(a),
            Op::Abs if float => ins.fabs(a),
            Op::Abs => ins.iabs(a),
            Op::Sqrt => ins.sqrt(a),
            Op::Floor => ins.floor(a),
            Op::Ceil => ins.ceil(a),
            Op::Trunc => ins.trunc(a),
            Op::Nearest => ins.nearest(a),
            Op::And => ins.band(a, b),
            Op::AndNot => ins.band_not(a, b),
            Op::Or => ins.bor(a, b),
            Op::Xor => ins.bxor(a, b),
            Op::Not => ins.bnot(a),
            Op::Shl => ins.ishl(a, b),
            Op::ShrSigned => ins.sshr(a, b),
            Op::ShrUnsigned => ins.ushr(a, b),
            Op::Compare(condition) if float => ins.fcmp(float_condition(condition), a, b),
            Op::Compare(condition) => ins.icmp(int_condition(condition), a, b),
            Op::Select => ins.select(a, b, c),
            Op::Splat => ins.splat(ty, a),
            Op::Extract(lane) => ins.extractlane(a, lane),
            Op::Insert(lane) => ins.insertlane(a, b, lane),
            Op::SignExtend => ins.sextend(ty, a),
            Op::ZeroExtend => ins.uextend(ty, a),
            Op::Truncate => ins.ireduce(ty, a),
            Op::Promote if result.is_vector() => ins.fvpromote_low(a),
            Op::Promote => ins.fpromote(ty, a),
            Op::Demote if result.is_vector() => ins.fvdemote(a),
            Op::Demote => ins.fdemote(ty, a),
            Op::ToSigned => ins.fcvt_to_sint_sat(ty, a),
            Op::ToUnsigned => ins.fcvt_to_uint_sat(ty, a),
            Op::FromSigned => ins.fcvt_from_sint(ty, a),
            Op::FromUnsigned => ins.fcvt_from_uint(ty, a),
            op => unreachable!("{op} is written above"),
        }
    }

    /// The low lanes of integers, extended to those of a type.
    fn widen(&mut self, op: Op, ty: ir::Type, x: ir::Value) -> ir::Value {
        let mut x = x;
        while self.cursor.func.dfg.value_type(x) != ty {
            x = match op {
                Op::SignExtend => self.cursor.ins().swiden_low(x),
                _ => self.cursor.ins().uwiden_low(x),
            };
        }
        x
    }

    /// The low lanes of integers, cut to those of a type.
    fn narrow(&mut self, ty: ir::Type, x: ir::Value) -> ir::Value {
        let have = self.cursor.func.dfg.value_type(x);
        if have == ty {
            return x;
        }
        let half = if have == types::I64X2 {
            let words: [ir::Value; 2] = [0u8, 1].map(|lane| {
                let word = self.cursor.ins().extractlane(x, lane);
                self.cursor.ins().ireduce(types::I32, word)
            });
            let first = self.cursor.ins().splat(types::I32X4, words[0]);
            self.cursor.ins().insertlane(first, words[1], 1)
        } else {
            // Keep the low half of each lane, which the saturating instruction then leaves alone.
            let (element, mask) =
                if have == types::I32X4 { (Element::I32, 0xffff) } else { (Element::I16, 0xff) };
            let mask = self.constant(Type::vector(element, VECTOR_BYTES), mask);
            let low = self.cursor.ins().band(x, mask);
            self.cursor.ins().unarrow(low, low)
        };
        self.narrow(ty, half)
    }
}

fn int_condition(condition: Condition) -> IntCC {
    match condition {
        Condition::Eq => IntCC::Equal,
        Condition::Ne => IntCC::NotEqual,
        Condition::Lt => IntCC::SignedLessThan,
        Condition::Le => IntCC::SignedLessThanOrEqual,
        Condition::Gt => IntCC::SignedGreaterThan,
        Condition::Ge => IntCC::SignedGreaterThanOrEqual,
        Condition::Below => IntCC::UnsignedLessThan,
        Condition::NotAbove => IntCC::UnsignedLessThanOrEqual,
        Condition::Above => IntCC::UnsignedGreaterThan,
        Condition::NotBelow => IntCC::UnsignedGreaterThanOrEqual,
    }
}

fn float_condition(condition: Condition) -> FloatCC {
    match condition {
        Condition::Eq => FloatCC::Equal,
        Condition::Ne => FloatCC::NotEqual,
        Condition::Lt | Condition::Below => FloatCC::LessThan,
        Condition::Le | Condition::NotAbove => FloatCC::LessThanOrEqual,
        Condition::Gt | Condition::Above => FloatCC::GreaterThan,
        Condition::Ge | Condition::NotBelow => FloatCC::GreaterThanOrEqual,
    }
}
