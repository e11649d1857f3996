//! The entry of a variant: a function that calls its kernels in order.
//!
//! A model of many steps is cut into parts of about [`PART`] steps, so that no function grows without bound; steps that
//! are repeated stay together, as a loop;
//! the entry checks the arena and calls the parts. All of them pass on the same arguments.

use std::ops::Range;

use cranelift_codegen::cursor::{Cursor, FuncCursor};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    self, AbiParam, Function, InstBuilder, MemFlagsData, Signature, StackSlotData, StackSlotKind, types,
};
use cranelift_module::{DataId, FuncId, Linkage, Module};
use windlass_ir::loops::{Move, Place, Program, Repeat, Work};

use super::unit::Unit;
use crate::error::Error;
use crate::jit::{WORTH_A_THREAD, grain};

/// The most steps of one function, but for those of the last repeat in it.
const PART: usize = 128;

/// What an entry is made from.
pub(super) struct Model<'a> {
    pub program: &'a Program,
    /// The function of each kernel.
    pub kernels: &'a [FuncId],
    /// Where each constant is among the weights.
    pub offsets: &'a [usize],
    /// The constants, if they are in the object and there are any.
    pub data: Option<DataId>,
    /// Whether the caller passes the constants.
    pub pass_weights: bool,
    /// What the names of its functions begin with.
    pub name: &'a str,
    /// Whether others may call the entry.
    pub linkage: Linkage,
    /// The arena's size as callers know it: that of the variant that needs most.
    pub arena_bytes: u64,
}

/// The signature of an entry.
pub(super) fn signature(unit: &Unit, pass_weights: bool, parallel: bool) -> Signature {
    let mut signature = Signature::new(unit.call_conv());
    let count = 3 + usize::from(pass_weights) + 2 * usize::from(parallel);
    signature.params.extend(vec![AbiParam::new(types::I64); count]);
    signature.returns.push(AbiParam::new(types::I32));
    signature
}

/// What the name of an entry ends with.
pub(super) fn suffix(parallel: bool) -> &'static str {
    if parallel { "run_parallel" } else { "run" }
}

/// The values that every part gets: inputs, outputs, arena; then weights; then the callback and its
/// context.
struct Arguments {
    inputs: ir::Value,
    outputs: ir::Value,
    arena: ir::Value,
    weights: Option<ir::Value>,
    parallel: Option<(ir::Value, ir::Value)>,
}

impl Model<'_> {
    /// Defines `NAME_run` or `NAME_run_parallel`.
    pub fn define(&self, unit: &mut Unit, parallel: bool) -> Result<FuncId, Error> {
        let suffix = suffix(parallel);
        let entry = signature(unit, self.pass_weights, parallel);
        let mut parts = Vec::new();
        for (at, steps) in self.cuts().into_iter().enumerate() {
            let signature = Signature { returns: Vec::new(), ..entry.clone() };
            let symbol = format!("{}_{suffix}_part{at}", self.name);
            let id = unit.declare(&symbol, Linkage::Local, &signature)?;
            let function = self.part(unit, signature, steps, parallel);
            unit.define(id, function, &symbol)?;
            parts.push(id);
        }
        let symbol = format!("{}_{suffix}", self.name);
        let id = unit.declare(&symbol, self.linkage, &entry)?;
        let function = self.entry(unit, entry, &parts);
        unit.define(id, function, &symbol)?;
        Ok(id)
    }

    /// The steps of each part.
    fn cuts(&self) -> Vec<Range<usize>> {
        let mut cuts = Vec::new();
        let mut first = 0;
        while first < self.program.steps.len() {
            let mut end = (first + PART).min(self.program.steps.len());
            let cut = self.program.repeat_of(end - 1);
            end = cut.map_or(end, |repeat| repeat.range().end);
            cuts.push(first..end);
            first = end;
        }
        cuts
    }

    /// Refuses an arena that is not aligned, calls the parts and returns 0.
    fn entry(&self, unit: &mut Unit, signature: Signature, parts: &[FuncId]) -> Function {
        let mut func = Function::with_name_signature(ir::UserFuncName::default(), signature);
        let (block, params) = begin(&mut func);
        let refuse = func.dfg.make_block();
        let run = func.dfg.make_block();
        let mut cursor = FuncCursor::new(&mut func).at_bottom(block);
        match self.arena_bytes {
            0 => {
                cursor.ins().jump(run, &[]);
            }
            _ => {
                let low = cursor.ins().band_imm_u(params[2], Program::ALIGN as i64 - 1);
                let null = cursor.ins().icmp_imm_u(IntCC::Equal, params[2], 0);
                let null = cursor.ins().uextend(types::I64, null);
                let wrong = cursor.ins().bor(low, null);
                cursor.ins().brif(wrong, refuse, &[], run, &[]);
                cursor.func.layout.append_block(refuse);
                cursor.goto_bottom(refuse);
                let one = cursor.ins().iconst(types::I32, 1);
                cursor.ins().return_(&[one]);
            }
        }
        cursor.func.layout.append_block(run);
        cursor.goto_bottom(run);
        for &part in parts {
            let callee = unit.module.declare_func_in_func(part, cursor.func);
            cursor.ins().call(callee, &params);
        }
        let zero = cursor.ins().iconst(types::I32, 0);
        cursor.ins().return_(&[zero]);
        func
    }

    fn part(&self, unit: &mut Unit, signature: Signature, steps: Range<usize>, parallel: bool) -> Function {
        let call_conv = signature.call_conv;
        let mut func = Function::with_name_signature(ir::UserFuncName::default(), signature);
        let (block, params) = begin(&mut func);
        let args = self.program.steps[steps.clone()].iter().map(|step| step.args.len());
        let widest = args.max().unwrap_or(0).max(1);
        let slot = StackSlotData::new(StackSlotKind::ExplicitSlot, 8 * widest as u32, 3);
        let slot = func.create_sized_stack_slot(slot);
        let callback = parallel.then(|| {
            let mut signature = Signature::new(call_conv);
            signature.params.extend([AbiParam::new(types::I64); 5]);
            func.import_signature(signature)
        });
        let weights = match self.data {
            Some(data) => {
                let global = unit.module.declare_data_in_func(data, &mut func);
                let mut cursor = FuncCursor::new(&mut func).at_bottom(block);
                Some(cursor.ins().symbol_value(types::I64, global))
            }
            None => self.pass_weights.then(|| params[3]),
        };
        let last = params.len();
        let arguments = Arguments {
            inputs: params[0],
            outputs: params[1],
            arena: params[2],
            weights,
            parallel: parallel.then(|| (params[last - 2], params[last - 1])),
        };
        let mut cursor = FuncCursor::new(&mut func).at_bottom(block);
        let table = cursor.ins().stack_addr(types::I64, slot, 0);
        let mut repeated: Option<Loop<'_>> = None;
        for at_step in steps {
            let step = &self.program.steps[at_step];
            if let Some(repeat) = self.program.repeat_of(at_step).filter(|repeat| repeat.first == at_step) {
                repeated = Some(Loop::begin(&mut cursor, repeat));
            }
            let Work::Kernel(number) = &step.work else { continue };
            let kernel = &self.program.kernels[*number as usize];
            for (at, place) in step.args.iter().enumerate() {
                let mut pointer = self.pointer(&mut cursor, &arguments, *place);
                if let Some(repeated) = &repeated
                    && let Some(moving) =
                        repeated.repeat.moves.iter().find(|m| (m.step, m.arg) == (at_step, at))
                {
                    pointer = repeated.moved(&mut cursor, pointer, moving);
                }
                cursor.ins().store(MemFlagsData::trusted(), pointer, table, 8 * at as i32);
            }
            let callee = unit.module.declare_func_in_func(self.kernels[*number as usize], cursor.func);
            let extent = kernel.as_parallel().map_or(1, |(_, extent, _)| extent as i64);
            let worth = grain(kernel, step, extent, WORTH_A_THREAD);
            match (arguments.parallel, callback) {
                (Some((function, context)), Some(signature)) if extent >= 2 * worth => {
                    let task = cursor.ins().func_addr(types::I64, callee);
                    let extent = cursor.ins().iconst(types::I64, extent);
                    let worth = cursor.ins().iconst(types::I64, worth);
                    cursor.ins().call_indirect(signature, function, &[context, task, table, extent, worth]);
                }
                _ => {
                    let begin = cursor.ins().iconst(types::I64, 0);
                    let end = cursor.ins().iconst(types::I64, extent);
                    cursor.ins().call(callee, &[table, begin, end]);
                }
            }
            if repeated.as_ref().is_some_and(|repeated| repeated.repeat.range().end == at_step + 1)
                && let Some(repeated) = repeated.take()
            {
                repeated.end(&mut cursor);
            }
        }
        cursor.ins().return_(&[]);
        func
    }

    fn pointer(&self, cursor: &mut FuncCursor<'_>, arguments: &Arguments, place: Place) -> ir::Value {
        let flags = MemFlagsData::trusted();
        match place {
            Place::Input(i) => cursor.ins().load(types::I64, flags, arguments.inputs, 8 * i as i32),
            Place::Output(i) => cursor.ins().load(types::I64, flags, arguments.outputs, 8 * i as i32),
            Place::Arena(offset) => offset_by(cursor, arguments.arena, offset as i64),
            Place::Constant(i) => match arguments.weights {
                Some(weights) => offset_by(cursor, weights, self.offsets[i as usize] as i64),
                // Only empty constants are nowhere.
                None => cursor.ins().iconst(types::I64, 0),
            },
        }
    }
}

/// The loop of a repeat, whose body is being written.
struct Loop<'a> {
    repeat: &'a Repeat,
    body: ir::Block,
    round: ir::Value,
}

impl<'a> Loop<'a> {
    fn begin(cursor: &mut FuncCursor<'_>, repeat: &'a Repeat) -> Loop<'a> {
        let body = cursor.func.dfg.make_block();
        let round = cursor.func.dfg.append_block_param(body, types::I64);
        let first = cursor.ins().iconst(types::I64, 0);
        cursor.ins().jump(body, &[first.into()]);
        cursor.func.layout.append_block(body);
        cursor.goto_bottom(body);
        Loop { repeat, body, round }
    }

    /// Where an argument is in this round.
    fn moved(&self, cursor: &mut FuncCursor<'_>, start: ir::Value, moving: &Move) -> ir::Value {
        let turn = match moving.period {
            0 => self.round,
            period => {
                let period = cursor.ins().iconst(types::I64, period as i64);
                cursor.ins().urem(self.round, period)
            }
        };
        let stride = cursor.ins().iconst(types::I64, moving.stride);
        let moved = cursor.ins().imul(turn, stride);
        let start = offset_by(cursor, start, moving.start as i64);
        cursor.ins().iadd(start, moved)
    }

    fn end(self, cursor: &mut FuncCursor<'_>) {
        let behind = cursor.func.dfg.make_block();
        let one = cursor.ins().iconst(types::I64, 1);
        let next = cursor.ins().iadd(self.round, one);
        let times = cursor.ins().iconst(types::I64, self.repeat.times as i64);
        let again = cursor.ins().icmp(IntCC::UnsignedLessThan, next, times);
        cursor.ins().brif(again, self.body, &[next.into()], behind, &[]);
        cursor.func.layout.append_block(behind);
        cursor.goto_bottom(behind);
    }
}

fn offset_by(cursor: &mut FuncCursor<'_>, base: ir::Value, offset: i64) -> ir::Value {
    let offset = cursor.ins().iconst(types::I64, offset);
    cursor.ins().iadd(base, offset)
}

/// The first block of a function, and its parameters.
pub(super) fn begin(func: &mut Function) -> (ir::Block, Vec<ir::Value>) {
    let block = func.dfg.make_block();
    func.layout.append_block(block);
    let types: Vec<ir::Type> = func.signature.params.iter().map(|param| param.value_type).collect();
    let params = types.into_iter().map(|ty| func.dfg.append_block_param(block, ty)).collect();
    (block, params)
}
