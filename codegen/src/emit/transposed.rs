//! Loops that read columns: a serial loop along memory around a vector loop across it.
//!
//! ```text
//! for i in 0..16
//!   vector for j in 0..8
//!     .. = load x[i + 1000*j]
//! ```
//!
//! A vector's lanes are far apart, but those of the next iteration are beside them. So a few iterations are done at a time:
//! each row's elements for all of them are one load, and the columns are made of the rows by exchanging lanes.

use smallvec::SmallVec;
use windlass_ir::DType;
use windlass_ir::loops::{Block, Buffer, Index, LoopKind, Role, Stmt, Val, Var};

use super::{Binding, Emitter};
use crate::error::Error;
use crate::ssa::{Element, Op, Type, Value};
use crate::vector::{Access, Body, Instr};

/// Iterations that are done at a time: elements of 4 bytes in the 16 bytes within which lanes are exchanged.
const COLUMNS: usize = 4;

/// A load of columns.
struct Columns<'b> {
    val: Val,
    buffer: Buffer,
    index: &'b Index,
}

impl<'k> Emitter<'k> {
    /// Writes as many iterations of a loop as are done several at a time, if any are. How many that is.
    pub(super) fn transposed_rounds(&mut self, var: Var, count: i64, block: &'k Block) -> Result<i64, Error> {
        let whole = count - count % COLUMNS as i64;
        let [Stmt::For { var: lane, extent, kind: LoopKind::Vector, body }] = block.as_slice() else {
            return Ok(0);
        };
        let lanes = extent.as_constant().unwrap_or(0);
        if whole == 0 || !self.machine.picks_lanes || !matches!(lanes, 4 | 8) {
            return Ok(0);
        }
        let form = self.body(*lane, body)?;
        let found: Vec<Columns<'_>> =
            form.instrs.iter().filter_map(|instr| self.columns_of(var, instr)).collect();
        let at_once = (lanes as usize).min(self.machine.vector_bytes / form.widest);
        if found.is_empty() || form.uses_registers || at_once < COLUMNS {
            return Ok(0);
        }
        let (zero, end) = (self.int(0), self.int(whole));
        self.open_loop(zero, end, COLUMNS as i64, Some(whole), block)?;
        let iv = self.loop_region().iv;
        for first in (0..lanes).step_by(at_once) {
            let mut made: Vec<(Val, [Value; COLUMNS])> = Vec::with_capacity(found.len());
            self.vars.insert(var.id, Binding { base: Some(iv), offset: 0 });
            for load in &found {
                made.push((load.val, self.columns(&form, load, first, at_once)?));
            }
            for column in 0..COLUMNS {
                self.vars.insert(var.id, Binding { base: Some(iv), offset: column as i64 });
                self.columns = made.iter().map(|(val, columns)| (*val, columns[column])).collect();
                self.uniforms(&form)?;
                self.piece(&form, at_once, Binding { base: None, offset: first })?;
            }
        }
        self.columns.clear();
        self.close_loop();
        Ok(whole)
    }

    /// The load that an instruction is, if it reads columns of what nothing writes.
    fn columns_of<'b>(&self, var: Var, instr: &'b Instr<'_>) -> Option<Columns<'b>> {
        let Instr::Load { val, buffer, access: Access::Strided { index, stride }, guards: [] } = instr else {
            return None;
        };
        let data = &self.kernel.buffers[*buffer];
        let words = matches!(data.dtype, DType::F32 | DType::I32 | DType::U32) && data.role == Role::In;
        let far = stride.unsigned_abs() > 2 && index.coefficient(var) == Some(1);
        (words && far).then_some(Columns { val: *val, buffer: *buffer, index })
    }

    /// The columns of the loop's present iterations, from a lane on.
    fn columns(
        &mut self,
        form: &Body<'k>,
        load: &Columns<'_>,
        first: i64,
        lanes: usize,
    ) -> Result<[Value; COLUMNS], Error> {
        let dtype = self.kernel.buffers[load.buffer].dtype;
        let [words, pairs] = [Element::F32, Element::F64].map(|e| Type::vector(e, self.machine.vector_bytes));
        let mut rows: SmallVec<[Value; 8]> = SmallVec::new();
        for offset in (first..).take(lanes) {
            self.vars.insert(form.lane.id, Binding { base: None, offset });
            let address = self.address(load.buffer, load.index)?;
            rows.push(self.load(load.buffer, address, words, 4 * COLUMNS));
        }
        let top = self.top_index();
        // Rows four apart go through the same exchanges, side by side.
        let joined: SmallVec<[Value; 4]> = (0..4)
            .map(|row| match lanes {
                4 => rows[row],
                _ => self.at(top, Op::Merge { at: 4, count: 4 }, &[rows[row + 4], rows[row]]),
            })
            .collect();
        let ops = [Op::ZipLow, Op::ZipHigh];
        let mut columns: SmallVec<[Value; COLUMNS]> = SmallVec::new();
        for op in ops {
            let [a, b] = [[0, 1], [2, 3]].map(|rows| {
                let zipped = self.at(top, op, &rows.map(|row| joined[row]));
                self.as_type(top, pairs, zipped)
            });
            for op in ops {
                let column = self.at(top, op, &[a, b]);
                columns.push(self.as_type(top, self.machine.vector_type(dtype), column));
            }
        }
        Ok([columns[0], columns[1], columns[2], columns[3]])
    }
}
