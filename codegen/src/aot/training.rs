//! The functions of a training step: one that begins its state, and one that runs the step and updates it.
//!
//! The program reads the state as its first inputs and makes the next one in their memory, as its last outputs.

use cranelift_codegen::cursor::{Cursor, FuncCursor};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    self, AbiParam, BlockArg, Function, InstBuilder, MemFlagsData, Signature, StackSlotData, StackSlotKind,
    types,
};
use cranelift_module::{FuncId, Linkage, Module};
use windlass_ir::Tensor;

use super::dispatch::address;
use super::entry::begin;
use super::unit::Unit;
use super::weights::in_order;
use crate::error::Error;

/// What a training step keeps, and what its program has beside that.
pub(super) struct Training<'a> {
    /// What the names of its functions begin with.
    pub name: &'a str,
    /// The state before the first step.
    pub state: &'a [Tensor],
    /// How many inputs and outputs are not state.
    pub inputs: usize,
    pub outputs: usize,
    pub little_endian: bool,
}

impl Training<'_> {
    /// Defines `void NAME_init(void *const *state)`.
    pub fn define_init(&self, unit: &mut Unit, copy: FuncId) -> Result<(), Error> {
        let mut bytes = vec![0; 8];
        let mut sources = Vec::with_capacity(self.state.len());
        for tensor in self.state {
            // Zeros are all read from the same place.
            let zero = tensor.raw_bytes().iter().all(|&byte| byte == 0);
            sources.push(if zero { (0, 0) } else { (bytes.len().next_multiple_of(8), 8) });
            if !zero {
                bytes.resize(bytes.len().next_multiple_of(8), 0);
                bytes.extend_from_slice(&in_order(tensor, self.little_endian));
            }
        }
        let data = unit.define_data(&format!("{}_initial", self.name), Linkage::Local, bytes)?;
        let mut signature = Signature::new(unit.call_conv());
        signature.params.push(AbiParam::new(types::I64));
        let symbol = format!("{}_init", self.name);
        let id = unit.declare(&symbol, Linkage::Export, &signature)?;
        let mut func = Function::with_name_signature(ir::UserFuncName::default(), signature);
        let (block, params) = begin(&mut func);
        let mut cursor = FuncCursor::new(&mut func).at_bottom(block);
        let copy = unit.module.declare_func_in_func(copy, cursor.func);
        let data = address(unit, &mut cursor, data);
        for (at, (tensor, (offset, stride))) in self.state.iter().zip(sources).enumerate() {
            let to = cursor.ins().load(types::I64, MemFlagsData::trusted(), params[0], 8 * at as i32);
            let from = cursor.ins().iadd_imm_s(data, offset as i64);
            let stride = cursor.ins().iconst(types::I64, stride);
            let count = cursor.ins().iconst(types::I64, tensor.bytes().len() as i64);
            cursor.ins().call(copy, &[to, from, stride, count]);
        }
        cursor.ins().return_(&[]);
        unit.define(id, func, &symbol)
    }

    /// Defines `int NAME_step(void *const *state, inputs, outputs, arena, ..)`, or what the suffix says, which calls the
    /// program's entry, of this signature, and gives back what it gives back.
    pub fn define_step(
        &self,
        unit: &mut Unit,
        (run, entry): (FuncId, Signature),
        suffix: &str,
    ) -> Result<(), Error> {
        let mut signature = entry;
        signature.params.insert(0, AbiParam::new(types::I64));
        let symbol = format!("{}_{suffix}", self.name);
        let id = unit.declare(&symbol, Linkage::Export, &signature)?;
        let mut func = Function::with_name_signature(ir::UserFuncName::default(), signature);
        let (block, params) = begin(&mut func);
        let kept = self.state.len();
        let entries = 2 * kept + self.inputs + self.outputs;
        let slot = StackSlotData::new(StackSlotKind::ExplicitSlot, 8 * entries.max(1) as u32, 3);
        let slot = func.create_sized_stack_slot(slot);
        let mut cursor = FuncCursor::new(&mut func).at_bottom(block);
        let [state, inputs, outputs] = [0, 1, 2].map(|at| params[at]);
        let tables = [(state, kept), (inputs, self.inputs), (outputs, self.outputs), (state, kept)];
        let pointers = tables.into_iter().flat_map(|(table, count)| (0..count).map(move |at| (table, at)));
        for (place, (table, at)) in pointers.enumerate() {
            let pointer = cursor.ins().load(types::I64, MemFlagsData::trusted(), table, 8 * at as i32);
            cursor.ins().stack_store(types::I64, pointer, slot, 8 * place as i32);
        }
        let all_inputs = cursor.ins().stack_addr(types::I64, slot, 0);
        let all_outputs = cursor.ins().stack_addr(types::I64, slot, 8 * (kept + self.inputs) as i32);
        let arguments: Vec<ir::Value> =
            [all_inputs, all_outputs].into_iter().chain(params[3..].iter().copied()).collect();
        let run = unit.module.declare_func_in_func(run, cursor.func);
        let call = cursor.ins().call(run, &arguments);
        let code = cursor.func.dfg.first_result(call);
        cursor.ins().return_(&[code]);
        unit.define(id, func, &symbol)
    }
}

/// Defines a function of this object that copies: to where, from where, by how many bytes the source moves for each 8
/// (8, or 0 to repeat them), and how many bytes.
pub(super) fn define_copy(unit: &mut Unit, name: &str) -> Result<FuncId, Error> {
    let mut signature = Signature::new(unit.call_conv());
    signature.params.extend([AbiParam::new(types::I64); 4]);
    let symbol = format!("{name}_copy");
    let id = unit.declare(&symbol, Linkage::Local, &signature)?;
    let mut func = Function::with_name_signature(ir::UserFuncName::default(), signature);
    let (block, params) = begin(&mut func);
    let mut cursor = FuncCursor::new(&mut func).at_bottom(block);
    let [mut to, mut from, stride, count] = [0, 1, 2, 3].map(|at| params[at]);
    let words = cursor.ins().ushr_imm_u(count, 3);
    let rest = cursor.ins().band_imm_u(count, 7);
    let part = cursor.ins().ushr_imm_u(stride, 3);
    for (ty, times, stride) in [(types::I64, words, stride), (types::I8, rest, part)] {
        let [test, body, behind] = [(); 3].map(|()| cursor.func.dfg.make_block());
        let [at_to, at_from, left] = [(); 3].map(|()| cursor.func.dfg.append_block_param(test, types::I64));
        cursor.ins().jump(test, &[to, from, times].map(BlockArg::Value));
        cursor.func.layout.append_block(test);
        cursor.goto_bottom(test);
        let is_done = cursor.ins().icmp_imm_u(IntCC::Equal, left, 0);
        cursor.ins().brif(is_done, behind, &[], body, &[]);
        cursor.func.layout.append_block(body);
        cursor.goto_bottom(body);
        let value = cursor.ins().load(ty, MemFlagsData::new(), at_from, 0);
        cursor.ins().store(MemFlagsData::new(), value, at_to, 0);
        let next_to = cursor.ins().iadd_imm_s(at_to, i64::from(ty.bytes()));
        let next_from = cursor.ins().iadd(at_from, stride);
        let next_left = cursor.ins().iadd_imm_s(left, -1);
        cursor.ins().jump(test, &[next_to, next_from, next_left].map(BlockArg::Value));
        cursor.func.layout.append_block(behind);
        cursor.goto_bottom(behind);
        (to, from) = (at_to, at_from);
    }
    cursor.ins().return_(&[]);
    unit.define(id, func, &symbol)?;
    Ok(id)
}
