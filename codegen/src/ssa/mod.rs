//! Code as blocks of instructions over scalars and vectors, before a machine is chosen.
//!
//! The [emitter](crate::emit) writes a kernel in this form, with vectors of whatever width it is asked
//! for, and a backend turns it into bytes: [Cranelift](crate::cranelift) for vectors of 128 bits on every
//! target, [`x86`](crate::x86) for wider ones. It is SSA with block parameters. An instruction does one
//! thing to every lane and gives the same bits at every width, so the width does not show in results.
//!
//! A vector's lanes beyond those a program uses hold anything, and conversions between element types work
//! on the low lanes: a vector of eight i32 widens to one of four i64 of the same size, from its low four.

mod text;
mod types;

use cranelift_entity::packed_option::PackedOption;
use cranelift_entity::{EntityRef, EntitySet, PrimaryMap, entity_impl};
use smallvec::SmallVec;

pub use self::types::{Element, Type};

/// Identifies a value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Value(u32);
entity_impl!(Value, "v");

/// Identifies a block.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Block(u32);
entity_impl!(Block, "block");

/// Identifies an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Inst(u32);
entity_impl!(Inst, "inst");

/// A line of a kernel's text: 0 is its first, the others are its statements, numbered from 1 in the order of the text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Line(u32);
entity_impl!(Line, "line");

/// Identifies an array on the stack.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);
entity_impl!(Slot, "slot");

/// What two numbers are asked. `Lt` to `Ge` are of signed integers and of floats, where they and `Eq` are false
/// for a NaN; `Ne` is true for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// Equal.
    Eq,
    /// Not equal.
    Ne,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
    /// Less, as unsigned integers.
    Below,
    /// Less or equal, as unsigned integers.
    NotAbove,
    /// Greater, as unsigned integers.
    Above,
    /// Greater or equal, as unsigned integers.
    NotBelow,
}

/// What an instruction does. Operands are named `a`, `b`, `c` in order; unless another is named, they and the
/// result have one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// These bits, in every lane.
    Const(u64),
    /// A step times the lane's number, or the number of its group where so many lanes are one.
    Iota {
        /// From one group to the next.
        step: i64,
        /// Lanes of a group.
        group: u8,
    },
    /// The address of an array on the stack.
    StackAddress(Slot),
    /// This many bytes from memory at address `a` plus an offset; the rest of a vector is 0.
    Load {
        /// Added to the address.
        offset: i32,
        /// How many bytes.
        bytes: u8,
    },
    /// Lanes of 4 bytes from memory at address `a` plus an offset where the mask `b` is all ones; 0 in the others, whose
    /// memory is not touched. Only of a machine that has it.
    LoadWhere {
        /// Added to the address.
        offset: i32,
    },
    /// Writes the low bytes of `a` to memory at address `b` plus an offset. No result.
    Store {
        /// Added to the address.
        offset: i32,
        /// How many bytes.
        bytes: u8,
    },
    /// Asks for what is at address `a` plus an offset to be brought into the second-level cache. No result, no fault.
    Prefetch {
        /// Added to the address.
        offset: i32,
    },
    /// `a + b`, of integers wrapping.
    Add,
    /// `a - b`, of integers wrapping.
    Sub,
    /// `a * b`, of integers wrapping.
    Mul,
    /// Of vectors of i32: the sum of the products of low halves and of high halves, signed and wrapping.
    Dot2,
    /// Of vectors of i32: the sum of the products of their bytes, those of `a` unsigned and those of `b` signed. Only of
    /// a machine that has it.
    Dot4,
    /// `a / b` of floats, or of signed integers: `b` is not 0, and not -1 where `a` is the least.
    Div,
    /// `a / b` of unsigned scalars, `b` not 0.
    DivUnsigned,
    /// The lesser. Of floats, NaN where one is, and -0 is less than 0. Integers are signed.
    Min,
    /// The greater, as above.
    Max,
    /// The lesser of unsigned integers.
    MinUnsigned,
    /// The greater of unsigned integers.
    MaxUnsigned,
    /// `a < b ? a : b` of floats.
    SelectLess,
    /// `a > b ? a : b` of floats.
    SelectGreater,
    /// `a * b + c`, rounded once.
    Fma,
    /// `-a`
    Neg,
    /// The absolute value.
    Abs,
    /// The square root.
    Sqrt,
    /// Rounded down.
    Floor,
    /// Rounded up.
    Ceil,
    /// Rounded towards zero.
    Trunc,
    /// Rounded to nearest, ties to even.
    Nearest,
    /// `a & b`, of bits.
    And,
    /// `a & !b`, of bits.
    AndNot,
    /// `a | b`, of bits.
    Or,
    /// `a ^ b`, of bits.
    Xor,
    /// `!a`, of bits.
    Not,
    /// `a` shifted left by `b`, a scalar below the element's width.
    Shl,
    /// `a` shifted right with its sign by `b`, as above.
    ShrSigned,
    /// `a` shifted right with zeros by `b`, as above.
    ShrUnsigned,
    /// Of scalars an i8, 0 or 1; of vectors a mask, integers of all ones or all zeros as wide as the operands'.
    Compare(Condition),
    /// `a != 0 ? b : c`, `a` an i8; a vector's lanes all come from one operand.
    Select,
    /// `b` in lanes where the mask `a` is all ones, `c` where it is 0.
    Blend,
    /// The scalar `a` in every lane.
    Splat,
    /// Scalars as the low lanes.
    Lanes,
    /// One lane of `a` as a scalar.
    Extract(u8),
    /// `a` with the scalar `b` in one lane.
    Insert(u8),
    /// `a` moved down by this many lanes.
    Drop(u8),
    /// `b` with so many low lanes of `a` from lane `at` on: 0, or lanes that are 16 or 32 bytes begin at a multiple of that.
    Merge {
        /// The first lane that is of `a`.
        at: u8,
        /// How many are.
        count: u8,
    },
    /// Of each 16 bytes of `a` and of `b` the lanes in the low half, by turns. Only of such a machine, of floats.
    ZipLow,
    /// The same of the high half.
    ZipHigh,
    /// The lanes of `a` that `b` numbers. Only of a machine that has it, of lanes of 4 bytes.
    Permute,
    /// Every second lane, from the first on, of a row that begins with this many low lanes of `a` and ends with as many of
    /// `b`, one lane being in both. Only of a machine that has it, of lanes of 4 bytes.
    Evens(u8),
    /// Integers, wider, with their sign.
    SignExtend,
    /// Integers, wider, with zeros.
    ZeroExtend,
    /// Integers, narrower, cut off.
    Truncate,
    /// The bits of an f16 to f32. Only of a machine that has it.
    FromHalf,
    /// f32 to the bits of an f16, rounded. Only of such a machine.
    ToHalf,
    /// f32 to f64.
    Promote,
    /// f64 to f32, rounded.
    Demote,
    /// Floats to signed integers as wide or wider: towards zero, the nearest there is, 0 for NaN.
    ToSigned,
    /// Floats to unsigned integers, as above.
    ToUnsigned,
    /// Signed integers to floats, rounded.
    FromSigned,
    /// Unsigned integers to floats, rounded.
    FromUnsigned,
    /// The same bits as another type.
    Bitcast,
}

/// An instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstData {
    /// What it does.
    pub op: Op,
    /// To what.
    pub args: SmallVec<[Value; 3]>,
    /// What it gives; a store gives nothing.
    pub result: Option<Value>,
    /// What it was written for, if that is asked for.
    pub line: PackedOption<Line>,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Def {
    /// A block's parameter.
    Param(Block),
    /// An instruction's result.
    Inst(Inst),
}

/// A value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ValueData {
    /// Its type.
    pub ty: Type,
    /// Where it comes from.
    pub def: Def,
}

/// A block that control goes on to, with what its parameters are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which.
    pub block: Block,
    /// Its parameters.
    pub args: Vec<Value>,
}

/// How a block ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It is still being written.
    Open,
    /// Goes on to a block.
    Jump(Target),
    /// Goes on to the first block if the i8 is not 0, else to the second.
    Branch(Value, [Target; 2]),
    /// Leaves the function.
    Return,
}

impl End {
    /// The blocks that control may go on to.
    pub fn targets(&self) -> &[Target] {
        match self {
            End::Open | End::Return => &[],
            End::Jump(target) => std::slice::from_ref(target),
            End::Branch(_, targets) => targets,
        }
    }
}

/// A block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockData {
    /// Its parameters.
    pub params: Vec<Value>,
    /// What it does, in order.
    pub insts: Vec<Inst>,
    /// How it ends.
    pub end: End,
    /// What its end was written for, if that is asked for.
    pub line: PackedOption<Line>,
}

/// A function of i64 parameters, those of its first block, without results.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Function {
    /// Every block; those laid out are in [`order`](Self::order).
    pub blocks: PrimaryMap<Block, BlockData>,
    /// The blocks in the order of code, the entry first.
    pub order: Vec<Block>,
    /// Every instruction.
    pub insts: PrimaryMap<Inst, InstData>,
    /// Every value.
    pub values: PrimaryMap<Value, ValueData>,
    /// Bytes of each array on the stack.
    pub slots: PrimaryMap<Slot, u32>,
    /// What is being written, if that is asked for; in the end the kernel's own line.
    pub line: PackedOption<Line>,
}

impl Function {
    /// A new block that is not laid out yet.
    pub fn block(&mut self) -> Block {
        let line = PackedOption::default();
        self.blocks.push(BlockData { params: Vec::new(), insts: Vec::new(), end: End::Open, line })
    }

    /// Adds a parameter to a block.
    pub fn param(&mut self, block: Block, ty: Type) -> Value {
        let value = self.values.push(ValueData { ty, def: Def::Param(block) });
        self.blocks[block].params.push(value);
        value
    }

    /// Adds an instruction with a result at a block's end.
    pub fn push(&mut self, block: Block, op: Op, ty: Type, args: &[Value]) -> Value {
        let result = self.values.push(ValueData { ty, def: Def::Inst(Inst::new(self.insts.len())) });
        let inst = self.insts.push(InstData {
            op,
            args: SmallVec::from_slice(args),
            result: Some(result),
            line: self.line,
        });
        self.blocks[block].insts.push(inst);
        result
    }

    /// Adds an instruction without a result at a block's end.
    pub fn push_effect(&mut self, block: Block, op: Op, args: &[Value]) {
        let inst =
            self.insts.push(InstData { op, args: SmallVec::from_slice(args), result: None, line: self.line });
        self.blocks[block].insts.push(inst);
    }

    /// Reorders the instructions at a block's end, which are stretches that begin at `starts`: the first of each, the second
    /// of each, and so on, so that a processor works on all of them at a time. A stretch may use values of those before
    /// it, and does not care when they write to memory.
    pub fn interleave(&mut self, block: Block, starts: &[usize]) {
        let Some(&first) = starts.first() else { return };
        let tail = self.blocks[block].insts.split_off(first);
        let ends = starts[1..].iter().copied().chain([first + tail.len()]);
        let mut stretches: Vec<&[Inst]> =
            starts.iter().zip(ends).map(|(&start, end)| &tail[start - first..end - first]).collect();
        let mut waiting: EntitySet<Value> = EntitySet::new();
        tail.iter().filter_map(|&inst| self.insts[inst].result).for_each(|value| _ = waiting.insert(value));
        let mut order = Vec::with_capacity(tail.len());
        while stretches.iter().any(|stretch| !stretch.is_empty()) {
            for stretch in &mut stretches {
                let Some((&inst, rest)) = stretch.split_first() else { continue };
                let data = &self.insts[inst];
                // The first stretch waits for none, so each round moves on.
                if data.args.iter().any(|&arg| waiting.contains(arg)) {
                    continue;
                }
                data.result.map(|result| waiting.remove(result));
                order.push(inst);
                *stretch = rest;
            }
        }
        self.blocks[block].insts.append(&mut order);
    }

    /// Ends a block.
    pub fn end(&mut self, block: Block, end: End) {
        let data = &mut self.blocks[block];
        (data.end, data.line) = (end, self.line);
    }

    /// The type of a value.
    pub fn ty(&self, value: Value) -> Type {
        self.values[value].ty
    }

    /// The instruction that gives a value, if one does.
    pub fn def(&self, value: Value) -> Option<&InstData> {
        match self.values[value].def {
            Def::Inst(inst) => Some(&self.insts[inst]),
            Def::Param(_) => None,
        }
    }

    /// The bits of a value that is a constant.
    pub fn as_const(&self, value: Value) -> Option<u64> {
        match self.def(value)?.op {
            Op::Const(bits) => Some(bits),
            _ => None,
        }
    }

    /// The type of what most operations give: that of their operands. The others need to be told.
    pub fn result_type(&self, op: Op, args: &[Value]) -> Type {
        match op {
            Op::Compare(_) => match self.ty(args[0]) {
                ty if ty.is_vector() => ty.as_int(),
                _ => Type::I8,
            },
            Op::Select | Op::Blend => self.ty(args[1]),
            Op::Extract(_) => self.ty(args[0]).lane(),
            _ => self.ty(args[0]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_take_turns_as_far_as_their_values_allow() {
        let mut func = Function::default();
        let block = func.block();
        let x = func.param(block, Type::I64);
        let mut add = |a: Value, b: Value| func.push(block, Op::Add, Type::I64, &[a, b]);
        let before = add(x, x);
        let a: Vec<Value> = vec![add(before, x), add(before, before)];
        let last = add(a[0], a[1]);
        // The second of these waits for the last one above.
        let b = [add(x, before), add(last, x), add(x, x)];
        func.interleave(block, &[1, 4]);
        let results: Vec<Value> =
            func.blocks[block].insts.iter().filter_map(|&inst| func.insts[inst].result).collect();
        assert_eq!(results, [before, a[0], b[0], a[1], last, b[1], b[2]]);
    }
}
