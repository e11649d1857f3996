//! The functions of an object with several variants: each asks for the variant that this machine runs best, and calls
//! it.
//!
//! ```text
//! NAME_run ----+                                     +-> NAME_VARIANT_run, of the one chosen
//! NAME_variant +-> NAME_chosen, a word in memory ----+
//!                  0: NAME_choose asks the processor and writes it, once
//! ```
//!
//! Threads that choose at the same time write the same word, so it needs no lock and no order.

use cranelift_codegen::cursor::{Cursor, FuncCursor};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    self, AbiParam, BlockArg, Function, InstBuilder, MemFlagsData, Signature, types,
};
use cranelift_module::{DataId, FuncId, Linkage, Module};

use super::entry::begin;
use super::needs::Needs;
use super::processor::{Processor, define_decision};
use super::unit::Unit;
use crate::error::Error;

/// What `NAME_run` returns where no variant runs.
const UNSUPPORTED: i64 = 2;

/// How the choice is made.
pub(super) struct Dispatch<'a> {
    name: &'a str,
    /// The variant chosen, counted from 1; 0 if none is yet, and -1 if there is none for this machine.
    chosen: DataId,
    choose: FuncId,
}

impl<'a> Dispatch<'a> {
    /// Defines what chooses among variants, the best first.
    pub fn define(unit: &mut Unit, name: &'a str, needs: &[Needs]) -> Result<Dispatch<'a>, Error> {
        let symbol = format!("{name}_chosen");
        let chosen = unit.define_word(&symbol)?;

        let processor = Processor::define(unit, name)?;
        let decide = define_decision(unit, &format!("{name}_decide"), Linkage::Local, needs)?;
        let mut signature = Signature::new(unit.call_conv());
        signature.returns.push(AbiParam::new(types::I32));
        let symbol = format!("{name}_choose");
        let choose = unit.declare(&symbol, Linkage::Local, &signature)?;
        let mut func = Function::with_name_signature(ir::UserFuncName::default(), signature);
        let (block, _) = begin(&mut func);
        let mut cursor = FuncCursor::new(&mut func).at_bottom(block);
        let words = processor.ask(unit, &mut cursor);
        let decide = unit.module.declare_func_in_func(decide, cursor.func);
        let call = cursor.ins().call(decide, &words);
        let found = cursor.func.dfg.first_result(call);
        let address = address(unit, &mut cursor, chosen);
        cursor.ins().store(MemFlagsData::trusted(), found, address, 0);
        cursor.ins().return_(&[found]);
        unit.define(choose, func, &symbol)?;
        Ok(Dispatch { name, chosen, choose })
    }

    /// Defines a function that calls the chosen one of others of its signature.
    pub fn forward(
        &self,
        unit: &mut Unit,
        symbol: &str,
        signature: Signature,
        linkage: Linkage,
        variants: &[FuncId],
    ) -> Result<FuncId, Error> {
        let id = unit.declare(symbol, linkage, &signature)?;
        let mut func = Function::with_name_signature(ir::UserFuncName::default(), signature);
        let (block, params) = begin(&mut func);
        let mut cursor = FuncCursor::new(&mut func).at_bottom(block);
        let chosen = self.chosen(unit, &mut cursor);
        for (position, &variant) in variants.iter().enumerate() {
            let callee = unit.module.declare_func_in_func(variant, cursor.func);
            self.if_chosen(&mut cursor, chosen, position, |cursor| {
                let call = cursor.ins().call(callee, &params);
                cursor.func.dfg.first_result(call)
            });
        }
        let unsupported = cursor.ins().iconst(types::I32, UNSUPPORTED);
        cursor.ins().return_(&[unsupported]);
        unit.define(id, func, symbol)?;
        Ok(id)
    }

    /// Defines `const char *NAME_variant(void)`, the name of the chosen one of these, or null.
    pub fn name_of_chosen(&self, unit: &mut Unit, names: &[String]) -> Result<(), Error> {
        let texts: Vec<u8> = names.iter().flat_map(|name| name.bytes().chain([0])).collect();
        let texts = unit.define_data(&format!("{}_variants", self.name), Linkage::Local, texts)?;
        let mut signature = Signature::new(unit.call_conv());
        signature.returns.push(AbiParam::new(types::I64));
        let symbol = format!("{}_variant", self.name);
        let id = unit.declare(&symbol, Linkage::Export, &signature)?;
        let mut func = Function::with_name_signature(ir::UserFuncName::default(), signature);
        let (block, _) = begin(&mut func);
        let mut cursor = FuncCursor::new(&mut func).at_bottom(block);
        let chosen = self.chosen(unit, &mut cursor);
        let texts = address(unit, &mut cursor, texts);
        let mut start = 0;
        for (position, name) in names.iter().enumerate() {
            self.if_chosen(&mut cursor, chosen, position, |cursor| {
                let start = cursor.ins().iconst(types::I64, start);
                cursor.ins().iadd(texts, start)
            });
            start += name.len() as i64 + 1;
        }
        let null = cursor.ins().iconst(types::I64, 0);
        cursor.ins().return_(&[null]);
        unit.define(id, func, &symbol)
    }

    /// The variant chosen, now or before. The cursor then stands in another block.
    fn chosen(&self, unit: &mut Unit, cursor: &mut FuncCursor<'_>) -> ir::Value {
        let choose = unit.module.declare_func_in_func(self.choose, cursor.func);
        let address = address(unit, cursor, self.chosen);
        let before = cursor.ins().load(types::I32, MemFlagsData::trusted(), address, 0);
        let [ask, done] = [(); 2].map(|()| cursor.func.dfg.make_block());
        let chosen = cursor.func.dfg.append_block_param(done, types::I32);
        cursor.ins().brif(before, done, &[BlockArg::Value(before)], ask, &[]);
        cursor.func.layout.append_block(ask);
        cursor.goto_bottom(ask);
        let call = cursor.ins().call(choose, &[]);
        let now = cursor.func.dfg.first_result(call);
        cursor.ins().jump(done, &[BlockArg::Value(now)]);
        cursor.func.layout.append_block(done);
        cursor.goto_bottom(done);
        chosen
    }

    /// Returns a value if the variant at a position was chosen.
    fn if_chosen(
        &self,
        cursor: &mut FuncCursor<'_>,
        chosen: ir::Value,
        position: usize,
        value: impl FnOnce(&mut FuncCursor<'_>) -> ir::Value,
    ) {
        let [own, others] = [(); 2].map(|()| cursor.func.dfg.make_block());
        let is = cursor.ins().icmp_imm_u(IntCC::Equal, chosen, position as i64 + 1);
        cursor.ins().brif(is, own, &[], others, &[]);
        cursor.func.layout.append_block(own);
        cursor.goto_bottom(own);
        let value = value(cursor);
        cursor.ins().return_(&[value]);
        cursor.func.layout.append_block(others);
        cursor.goto_bottom(others);
    }
}

/// The address of data.
pub(super) fn address(unit: &mut Unit, cursor: &mut FuncCursor<'_>, data: DataId) -> ir::Value {
    let global = unit.module.declare_data_in_func(data, cursor.func);
    cursor.ins().symbol_value(types::I64, global)
}
