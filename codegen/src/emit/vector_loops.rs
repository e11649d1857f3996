//! How vector loops are cut into pieces: a loop over whole ones, then what is left.

use std::rc::Rc;

use windlass_ir::loops::{Block, Var};

use super::{Binding, Emitter, Number, registers};
use crate::error::Error;
use crate::ssa::{Op, Value};
use crate::vector::Body;

/// Up to this many elements and instructions, a loop of known extent is written out.
const WRITTEN_OUT: i64 = 64;

/// A piece of more instructions than this waits for its own results, for the processor does not look so far ahead.
const LONG: usize = 20;

/// How many of those are done side by side.
const COPIES: i64 = 2;

impl<'k> Emitter<'k> {
    pub(super) fn vector_loop(&mut self, var: Var, extent: Number, block: &'k Block) -> Result<(), Error> {
        let body = self.body(var, block)?;
        let widest = (self.machine.vector_bytes / body.widest) as i64;
        let Number::Known(count) = extent else {
            return self.counted_vector_loop(&body, extent, widest, block);
        };
        self.uniforms(&body)?;
        let mut done = 0;
        let step = widest * copies(&body);
        let written_out = count.max((count + widest - 1) / widest * body.instrs.len() as i64);
        if count >= 2 * step && written_out > WRITTEN_OUT && !body.uses_registers {
            done = count - count % step;
            let end = self.int(done);
            self.whole_pieces(&body, end, step, widest, Some(done), block)?;
        } else if count as usize > registers::WRITTEN_OUT {
            return self.error(format!("a vector loop of {count} lanes over a register buffer"));
        }
        let side_by_side = widest * COPIES;
        while body.instrs.len() > LONG && count - done >= side_by_side {
            let firsts = (done..done + side_by_side).step_by(widest as usize);
            self.pieces(&body, widest as usize, firsts.map(|offset| Binding { base: None, offset }))?;
            done += side_by_side;
        }
        while done < count {
            let lanes = self.lanes_at_once((count - done).min(widest));
            let first = Binding { base: None, offset: done };
            match lanes {
                1 => {
                    self.vars.insert(var.id, first);
                    self.block(block)?;
                }
                _ => self.piece(&body, lanes as usize, first)?,
            }
            done += lanes;
        }
        Ok(())
    }

    /// How many of the lanes that are left of a loop one piece takes, the rest of a vector being idle: all of them if
    /// there is a mask for that, else the largest power of two.
    fn lanes_at_once(&mut self, left: i64) -> i64 {
        if self.loads_at_once(left) { left } else { 1 << left.ilog2() }
    }

    /// Whether so many lanes are loaded and stored at once: a power of two, or as many as there is a mask for.
    pub(super) fn loads_at_once(&mut self, lanes: i64) -> bool {
        if 1 << lanes.ilog2() == lanes || self.masks.contains(&lanes) {
            return true;
        }
        let room = self.masks.len() < self.machine.masks;
        if room {
            self.masks.push(lanes);
        }
        room
    }

    /// The vector form of a vector loop's body.
    pub(super) fn body(&mut self, var: Var, block: &'k Block) -> Result<Rc<Body<'k>>, Error> {
        let address = std::ptr::from_ref(block);
        if let Some(known) = self.bodies.get(&address) {
            return Ok(known.clone());
        }
        let body = Body::new(self.kernel, var, block).or_else(|message| self.error(message))?;
        Ok(self.bodies.entry(address).or_insert(Rc::new(body)).clone())
    }

    /// A vector loop whose extent is known only when it runs: whole pieces, then one lane at a time.
    fn counted_vector_loop(
        &mut self,
        body: &Body<'k>,
        extent: Number,
        widest: i64,
        block: &'k Block,
    ) -> Result<(), Error> {
        let count = self.number(extent);
        let step = widest * copies(body);
        let mask = self.int(-step);
        let region = self.hoisted(&[count]);
        let whole = self.at(region, Op::And, &[count, mask]);
        // With no iteration at all, what is the same for every lane may not be there to load.
        let zero = self.int(0);
        self.open_loop(zero, whole, step, None, block)?;
        self.uniforms(body)?;
        let iv = self.loop_region().iv;
        let firsts = (0..step).step_by(widest as usize).map(|offset| Binding { base: Some(iv), offset });
        self.pieces(body, widest as usize, firsts)?;
        self.close_loop();
        self.open_loop(whole, count, 1, None, block)?;
        let iv = self.loop_region().iv;
        self.vars.insert(body.lane.id, Binding { base: Some(iv), offset: 0 });
        self.block(block)?;
        self.close_loop();
        Ok(())
    }

    fn whole_pieces(
        &mut self,
        body: &Body<'k>,
        end: Value,
        step: i64,
        lanes: i64,
        known: Option<i64>,
        block: &'k Block,
    ) -> Result<(), Error> {
        let zero = self.int(0);
        self.open_loop(zero, end, step, known, block)?;
        let iv = self.loop_region().iv;
        let firsts = (0..step).step_by(lanes as usize).map(|offset| Binding { base: Some(iv), offset });
        self.pieces(body, lanes as usize, firsts)?;
        self.close_loop();
        Ok(())
    }

    /// Several pieces, side by side if each is a long chain of instructions.
    fn pieces(
        &mut self,
        body: &Body<'k>,
        lanes: usize,
        firsts: impl Iterator<Item = Binding>,
    ) -> Result<(), Error> {
        let block = self.top().block;
        let mut starts = Vec::new();
        for first in firsts {
            starts.push(self.func.blocks[block].insts.len());
            self.piece(body, lanes, first)?;
        }
        // Addresses of single lanes, of which each piece has many, would not all fit into registers.
        if body.instrs.len() > LONG && !body.gathers() && self.top().block == block {
            self.func.interleave(block, &starts);
        }
        Ok(())
    }
}

/// How many copies of a piece one iteration holds: enough that counting and jumping do not show, and that the processor has
/// another to go on with while it waits for one's results.
fn copies(body: &Body<'_>) -> i64 {
    match body.instrs.len() {
        0..=6 => 4,
        _ => COPIES,
    }
}
