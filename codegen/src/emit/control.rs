//! Control flow: loops and branches as blocks, with register buffers as their parameters.

use windlass_ir::loops::{Block, Buffer, Guard, Var};

use super::region::{LoopRegion, Region, RegionKind};
use super::registers::{self, RegisterFile};
use super::{Binding, Emitter, Number};
use crate::error::Error;
use crate::ssa::{self, Condition, End, Op, Target, Type, Value};

impl<'k> Emitter<'k> {
    /// A loop whose iterations follow each other.
    pub(super) fn serial_loop(&mut self, var: Var, extent: Number, body: &'k Block) -> Result<(), Error> {
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
    pub(super) fn rounds(
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
    pub(super) fn open_loop(
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

    pub(super) fn close_loop(&mut self) {
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
    pub(super) fn join(&mut self, block: ssa::Block, parts: &[(Buffer, usize)]) {
        self.func.order.push(block);
        self.top().block = block;
        let level = self.top_index() as u32;
        for &(buffer, at) in parts {
            let param = self.func.param(block, self.registers[&buffer].ty);
            self.home[param] = level;
            self.chunks(buffer)[at] = param.into();
        }
    }

    pub(super) fn branch(
        &mut self,
        guards: &[Guard],
        then: &'k Block,
        otherwise: &'k Block,
    ) -> Result<(), Error> {
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
    pub(super) fn fork(&mut self, condition: Value) -> [ssa::Block; 2] {
        let sides = [(), ()].map(|()| self.func.block());
        self.end(End::Branch(condition, sides.map(|block| Target { block, args: Vec::new() })));
        sides
    }

    /// Opens one side of a branch.
    pub(super) fn enter_side(&mut self, side: ssa::Block) {
        self.func.order.push(side);
        self.regions.push(Region::new(RegionKind::Branch, side));
    }

    /// Closes it.
    pub(super) fn leave_side(&mut self, join: Target) {
        self.end(End::Jump(join));
        self.regions.pop();
    }

    /// Ends the current block.
    pub(super) fn end(&mut self, end: End) {
        let block = self.top().block;
        self.func.end(block, end);
    }
}
