//! Loads of vectors: neighbours at once, those of them that pass their guards, elements that are two apart or shared by
//! neighbouring lanes, and lane by lane whatever is elsewhere.

use smallvec::SmallVec;
use windlass_ir::DType;
use windlass_ir::loops::{Buffer, Guard, Index, Role, Var};

use super::lanes::Piece;
use super::{Binding, Emitter, Number};
use crate::error::Error;
use crate::ssa::{Condition, Element, Op, Target, Type, Value};
use crate::vector::Access;

/// A variable of its own for pieces; no kernel has as many variables.
const PIECE: u32 = u32::MAX;

impl Piece<'_, '_> {
    /// How far apart the elements are that groups of lanes read, and how large the groups are, if lanes differ by nothing
    /// else.
    fn repeats(&self, index: &Index) -> Option<(i64, u8)> {
        if index.values().iter().any(|&val| self.body.varies(val)) {
            return None;
        }
        let (own, lanes) = (self.body.lane, self.lanes as i64);
        // Where a piece starts is a multiple of its lanes.
        let start = match self.first {
            Binding { base: None, offset } => Index::constant(offset),
            Binding { base: Some(_), offset } if offset % lanes == 0 => {
                Index::var(Var { id: PIECE, extent: own.extent.div_ceil(self.lanes) }).mul(lanes)
            }
            _ => return None,
        };
        let at = |lane: i64| index.substitute(&|var| (var == own).then(|| start.add_const(lane)));
        let first = at(0);
        let offsets: Option<SmallVec<[i64; 16]>> =
            (0..lanes).map(|lane| at(lane).sub(&first).as_constant()).collect();
        let offsets = offsets?;
        let group = offsets.iter().take_while(|&&offset| offset == 0).count();
        let step = offsets.get(group).copied().unwrap_or(0);
        let mut places = (0..).map(|lane| (lane / group as i64).wrapping_mul(step));
        let alike = step >= 0 && offsets.iter().all(|&offset| places.next() == Some(offset));
        alike.then_some((step, group as u8))
    }
}

impl<'k> Emitter<'k> {
    /// Loads a value that differs by lane.
    pub(super) fn load_lanes(
        &mut self,
        piece: &Piece<'_, 'k>,
        buffer: Buffer,
        access: &Access<'_>,
        guards: &[Guard],
    ) -> Result<Value, Error> {
        let data = &self.kernel.buffers[buffer];
        let dtype = data.dtype;
        let index = access.index();
        let lanes = piece.lanes;
        if data.role == Role::Register {
            if access.is_contiguous() && guards.is_empty() && self.registers[&buffer].lanes() > 1 {
                let at = self.register_position(buffer, index)?;
                return Ok(self.read_register_lanes(buffer, at, lanes));
            }
        } else if access.is_contiguous()
            && self.whole_width(dtype, lanes)
            && let Some(whole) = self.guarded_piece(piece, guards)?
        {
            return self.load_piece(piece, buffer, index, guards, whole);
        }
        if data.role != Role::Register && guards.is_empty() && dtype.size() == 4 && self.machine.picks_lanes {
            let picked = match access {
                Access::Strided { stride: 2, .. } => self.load_evens(buffer, index, lanes)?,
                Access::Strided { .. } => None,
                Access::Irregular(_) => self.load_repeated(piece, buffer, index)?,
            };
            if let Some(value) = picked {
                return Ok(value);
            }
        }
        self.load_each_lane(piece, buffer, index, guards)
    }

    /// Loads every second element from two pieces of memory, which reach no further than the last of them, if there is an
    /// instruction for so many.
    fn load_evens(&mut self, buffer: Buffer, index: &Index, lanes: usize) -> Result<Option<Value>, Error> {
        let bytes = self.machine.vector_bytes;
        if bytes < 64 && lanes != 4 && 4 * lanes != bytes {
            return Ok(None);
        }
        let first = self.address(buffer, index)?;
        let last = self.address(buffer, &index.add_const(lanes as i64 - 1))?;
        let [a, b] = [first, last].map(|address| self.load_vector(buffer, address, lanes));
        Ok(Some(self.at(self.top_index(), Op::Evens(lanes as u8), &[a, b])))
    }

    /// Loads elements, each of which several lanes read, if they are within a vector, or one or two.
    fn load_repeated(
        &mut self,
        piece: &Piece<'_, 'k>,
        buffer: Buffer,
        index: &Index,
    ) -> Result<Option<Value>, Error> {
        let Some((step, group)) = piece.repeats(index) else { return Ok(None) };
        let ty = self.machine.vector_type(self.kernel.buffers[buffer].dtype);
        let last = step * (piece.lanes as i64 - 1).div_euclid(i64::from(group));
        let first = self.address(buffer, index)?;
        let top = self.top_index();
        // Larger vectors take as long for both as for one.
        let two = last == step && self.machine.vector_bytes < 64;
        if last == 0 || two {
            let last = self.address(buffer, &index.add_const(last))?;
            let [a, b] = [first, last].map(|address| {
                let element = self.load(buffer, address, ty.lane(), ty.element().bytes());
                self.typed(top, Op::Splat, ty, &[element])
            });
            return Ok(Some(if first == last {
                a
            } else {
                self.at(top, Op::Merge { at: 0, count: group }, &[a, b])
            }));
        }
        if last >= piece.lanes as i64 || !self.loads_at_once(last + 1) {
            return Ok(None);
        }
        let row = self.load_vector(buffer, first, last as usize + 1);
        let numbers = self.cached(self.constant_region(), Op::Iota { step, group }, ty.as_int(), &[]);
        Ok(Some(self.at(top, Op::Permute, &[row, numbers])))
    }

    /// Whether all lanes of a piece pass those guards that differ by lane, or `None` if that cannot be told
    /// from the first and the last lane.
    fn guarded_piece(&mut self, piece: &Piece<'_, 'k>, guards: &[Guard]) -> Result<Option<Number>, Error> {
        if guards.is_empty() {
            return Ok(Some(Number::Known(1)));
        }
        let lane = piece.body.lane;
        let moving: Vec<Guard> = guards.iter().filter(|g| g.index.mentions(lane)).cloned().collect();
        let varies = |g: &Guard| g.index.values().iter().any(|&v| piece.body.varies(v));
        if guards.iter().any(varies) || moving.iter().any(|g| g.index.coefficient(lane).is_none()) {
            return Ok(None);
        }
        let first = self.guards(&moving)?.unwrap_or(Number::Known(1));
        let last =
            self.in_lane(piece, piece.lanes - 1, &[], |e| e.guards(&moving))?.unwrap_or(Number::Known(1));
        Ok(Some(match (first, last) {
            (Number::Known(0), _) | (_, Number::Known(0)) => Number::Known(0),
            (Number::Known(_), other) | (other, Number::Known(_)) => other,
            (Number::Value(a), Number::Value(b)) => Number::Value(self.pure(Op::And, &[a, b])),
        }))
    }

    /// Loads a contiguous piece at once where all lanes pass their guards, and those that do elsewhere.
    fn load_piece(
        &mut self,
        piece: &Piece<'_, 'k>,
        buffer: Buffer,
        index: &Index,
        guards: &[Guard],
        whole: Number,
    ) -> Result<Value, Error> {
        let steady: Vec<Guard> =
            guards.iter().filter(|g| !g.index.mentions(piece.body.lane)).cloned().collect();
        match whole {
            Number::Known(0) => self.load_some(piece, buffer, index, guards),
            Number::Known(_) => self.load_whole(piece, buffer, index, &steady),
            Number::Value(whole) => {
                let sides = self.fork(whole);
                let join = self.func.block();
                let mut ty = None;
                for (at, side) in sides.into_iter().enumerate() {
                    self.enter_side(side);
                    let value = match at {
                        0 => self.load_whole(piece, buffer, index, &steady)?,
                        _ => self.load_some(piece, buffer, index, guards)?,
                    };
                    ty = Some(self.func.ty(value));
                    self.leave_side(Target { block: join, args: vec![value] });
                }
                self.join(join, &[]);
                let value = self.func.param(join, ty.expect("both sides load"));
                self.home[value] = self.top_index() as u32;
                Ok(value)
            }
        }
    }

    /// Loads those lanes of a contiguous piece that pass their guards: under a mask if there is an instruction for that.
    fn load_some(
        &mut self,
        piece: &Piece<'_, 'k>,
        buffer: Buffer,
        index: &Index,
        guards: &[Guard],
    ) -> Result<Value, Error> {
        let (moving, steady): (Vec<Guard>, Vec<Guard>) =
            guards.iter().cloned().partition(|g| g.index.mentions(piece.body.lane));
        let dtype = self.kernel.buffers[buffer].dtype;
        let ty = self.machine.vector_type(dtype);
        if self.machine.picks_lanes
            && dtype.size() == 4
            && let Some((address, offset)) = self.address_under(&steady, buffer, index)?
            && let Some(mask) = self.inside(piece, &moving, ty.as_int())?
        {
            return Ok(self.typed(self.top_index(), Op::LoadWhere { offset }, ty, &[address, mask]));
        }
        self.load_each_lane(piece, buffer, index, guards)
    }

    /// The mask of a piece's lanes that pass guards whose indices move with them, in lanes of 32 bits, or `None` if those do
    /// not hold the indices. Lanes beyond the piece do not pass.
    fn inside(
        &mut self,
        piece: &Piece<'_, 'k>,
        guards: &[Guard],
        words: Type,
    ) -> Result<Option<Value>, Error> {
        let fits = |guard: &Guard| {
            let (least, most) = guard.index.range();
            [least, most, guard.size as i64].into_iter().all(|number| i32::try_from(number).is_ok())
        };
        if words.element() != Element::I32 || !guards.iter().all(fits) {
            return Ok(None);
        }
        let mut mask: Option<Value> = None;
        let mut test = |emitter: &mut Self, numbers: Value, size: usize| {
            let size = emitter.bits(size as u64, words);
            let region = emitter.hoisted(&[numbers, size]);
            let passes = emitter.cached(region, Op::Compare(Condition::Below), words, &[numbers, size]);
            mask = Some(match mask {
                None => passes,
                Some(mask) => {
                    emitter.cached(emitter.hoisted(&[mask, passes]), Op::And, words, &[mask, passes])
                }
            });
        };
        if piece.lanes < words.lanes() {
            let numbers = self.cached(self.constant_region(), Op::Iota { step: 1, group: 1 }, words, &[]);
            test(self, numbers, piece.lanes);
        }
        for guard in guards {
            let step = guard.index.coefficient(piece.body.lane).unwrap_or(0);
            let number = self.index(&guard.index)?;
            let first = self.number(number);
            let first = self.cached(self.hoisted(&[first]), Op::Truncate, Type::I32, &[first]);
            let spread = self.cached(self.hoisted(&[first]), Op::Splat, words, &[first]);
            let steps = self.cached(self.constant_region(), Op::Iota { step, group: 1 }, words, &[]);
            let numbers = self.cached(self.hoisted(&[spread, steps]), Op::Add, words, &[spread, steps]);
            test(self, numbers, guard.size);
        }
        Ok(mask)
    }

    /// Loads a contiguous piece under guards that are the same for every lane.
    fn load_whole(
        &mut self,
        piece: &Piece<'_, 'k>,
        buffer: Buffer,
        index: &Index,
        guards: &[Guard],
    ) -> Result<Value, Error> {
        match self.address_under(guards, buffer, index)? {
            Some(address) => Ok(self.load_vector(buffer, address, piece.lanes)),
            None => self.load_each_lane(piece, buffer, index, guards),
        }
    }

    /// An element's address, or that of zeros where a guard fails; `None` if one is known to.
    fn address_under(
        &mut self,
        guards: &[Guard],
        buffer: Buffer,
        index: &Index,
    ) -> Result<Option<(Value, i32)>, Error> {
        Ok(match self.guards(guards)? {
            Some(Number::Known(_)) => None,
            Some(Number::Value(condition)) => {
                let address = self.address(buffer, index)?;
                Some((self.guarded_address(address, condition), 0))
            }
            None => Some(self.address(buffer, index)?),
        })
    }

    fn load_each_lane(
        &mut self,
        piece: &Piece<'_, 'k>,
        buffer: Buffer,
        index: &Index,
        guards: &[Guard],
    ) -> Result<Value, Error> {
        let dtype = self.kernel.buffers[buffer].dtype;
        let mut elements: SmallVec<[Value; 16]> = SmallVec::new();
        let indices: Vec<&Index> = std::iter::once(index).chain(guards.iter().map(|g| &g.index)).collect();
        for lane in 0..piece.lanes {
            elements.push(self.in_lane(piece, lane, &indices, |e| e.scalar_load(buffer, index, guards))?);
        }
        Ok(self.scalars_to_lanes(dtype, &elements))
    }

    /// Whether this many elements can be loaded and stored as one piece.
    pub(super) fn whole_width(&self, dtype: DType, lanes: usize) -> bool {
        lanes * dtype.size() == self.machine.vector_bytes || (self.machine.little_endian && lanes > 1)
    }

    /// Loads contiguous elements into the low lanes of a vector.
    fn load_vector(&mut self, buffer: Buffer, address: (Value, i32), lanes: usize) -> Value {
        let dtype = self.kernel.buffers[buffer].dtype;
        let ty = self.machine.vector_type(dtype);
        let vector = self.load(buffer, address, ty, lanes * dtype.size());
        match dtype {
            DType::Bool => {
                let region = self.home[vector] as usize;
                let zero = self.bits_for(region, 0, ty);
                self.at(region, Op::Compare(Condition::Ne), &[vector, zero])
            }
            _ => vector,
        }
    }
}
