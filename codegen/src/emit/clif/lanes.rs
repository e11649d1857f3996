//! Vector loops over 128-bit vectors.
//!
//! A body's number of lanes is set by its widest element. A narrower value takes the low lanes of a
//! vector of its own type, so that every instruction works on the type it is for; only conversions,
//! masks and memory accesses see the difference. A bool is a mask (all ones or zeros) in lanes as wide
//! as what it was compared from. Functions without a vector instruction are applied lane by lane.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{self, InstBuilder, MemFlagsData, Type, types};
use cranelift_entity::SecondaryMap;
use cranelift_entity::packed_option::PackedOption;
use smallvec::SmallVec;
use windlass_ir::loops::{Block, Buffer, Guard, Index, Role, Val, Var};
use windlass_ir::{DType, ScalarFn};

use super::region::{Key, Region, RegionKind};
use super::scalar::memory;
use super::{Binding, Emitter, Number, registers};
use crate::error::Error;
use crate::vector::{Access, Body, Instr};

/// Up to this many elements, a loop of known extent is written out.
const WRITTEN_OUT: i64 = 64;

/// The 128-bit vector of an element type. Halves are their bits; a bool is a mask of bytes in memory
/// order, but may be kept in wider lanes.
pub(super) fn vector_type(dtype: DType) -> Type {
    match dtype {
        DType::Bool | DType::I8 | DType::U8 => types::I8X16,
        DType::I16 | DType::U16 | DType::F16 | DType::BF16 => types::I16X8,
        DType::I32 | DType::U32 => types::I32X4,
        DType::I64 | DType::U64 => types::I64X2,
        DType::F32 => types::F32X4,
        DType::F64 => types::F64X2,
    }
}

/// One piece of a vector loop: a number of lanes that one set of instructions works on.
struct Piece<'b, 'k> {
    body: &'b Body<'k>,
    lanes: usize,
    /// What the loop's variable is in lane 0.
    first: Binding,
    values: SecondaryMap<Val, PackedOption<ir::Value>>,
}

impl<'k> Emitter<'k> {
    pub(super) fn vector_loop(&mut self, var: Var, extent: Number, block: &'k Block) -> Result<(), Error> {
        let body = match Body::new(self.kernel, var, block) {
            Ok(body) => body,
            Err(message) => return self.error(message),
        };
        let widest = 16 / body.widest as i64;
        let Number::Known(count) = extent else {
            return self.counted_vector_loop(&body, extent, widest, block);
        };
        self.uniforms(&body)?;
        let mut done = 0;
        if count > WRITTEN_OUT && !body.uses_registers {
            let step = widest * copies(&body);
            done = count - count % step;
            let end = self.int(done);
            self.whole_pieces(&body, end, step, widest, Some(done), block)?;
        } else if count as usize > registers::WRITTEN_OUT {
            return self.error(format!("a vector loop of {count} lanes over a register buffer"));
        }
        while done < count {
            let left = (count - done).min(widest);
            let lanes = 1i64 << (63 - left.leading_zeros());
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
        let whole = self.at(region, |ins| ins.band(count, mask));
        // With no iteration at all, what is the same for every lane may not be there to load.
        let zero = self.int(0);
        self.open_loop(zero, whole, step, None, block)?;
        self.uniforms(body)?;
        let iv = self.loop_region().iv;
        for at in (0..step).step_by(widest as usize) {
            self.piece(body, widest as usize, Binding { base: Some(iv), offset: at })?;
        }
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
        end: ir::Value,
        step: i64,
        lanes: i64,
        known: Option<i64>,
        block: &'k Block,
    ) -> Result<(), Error> {
        let zero = self.int(0);
        self.open_loop(zero, end, step, known, block)?;
        let iv = self.loop_region().iv;
        for at in (0..step).step_by(lanes as usize) {
            self.piece(body, lanes as usize, Binding { base: Some(iv), offset: at })?;
        }
        self.close_loop();
        Ok(())
    }

    /// Computes what is the same in every lane, and spreads to vectors what lanes use of it: straight
    /// after its load, an instruction that loads and spreads can be chosen.
    fn uniforms(&mut self, body: &Body<'k>) -> Result<(), Error> {
        for instr in &body.instrs {
            if let Instr::Uniform(binding) = instr {
                self.scalar_let(binding)?;
            }
            let used: &[Val] = match instr {
                Instr::Apply { args, .. } => args,
                Instr::Store { val, .. } => std::slice::from_ref(val),
                Instr::Uniform(_) | Instr::Load { .. } | Instr::Index { .. } | Instr::Inside { .. } => &[],
            };
            for &val in used.iter().filter(|&&v| !body.varies(v)) {
                let spread = self.spread(val)?;
                if body.uses_registers && self.constants[val].is_none() {
                    self.settle(val, spread)?;
                }
            }
        }
        Ok(())
    }

    fn piece(&mut self, body: &Body<'k>, lanes: usize, first: Binding) -> Result<(), Error> {
        self.vars.insert(body.lane.id, first);
        let mut piece = Piece { body, lanes, first, values: SecondaryMap::new() };
        for instr in &body.instrs {
            let (val, value) = match instr {
                Instr::Uniform(_) => continue,
                Instr::Store { buffer, access, val } => {
                    self.store_lanes(&piece, *buffer, access, *val)?;
                    continue;
                }
                Instr::Load { val, buffer, access, guards } => {
                    (*val, self.load_lanes(&piece, *buffer, access, guards)?)
                }
                Instr::Index { val, index } => (*val, self.index_lanes(&piece, index)?),
                Instr::Inside { val, guards } => (*val, self.inside_lanes(&piece, guards)?),
                Instr::Apply { val, function, args } => (*val, self.apply_lanes(&piece, *function, args)?),
            };
            piece.values[val] = value.into();
        }
        Ok(())
    }

    /// Runs `each` with the loop's variable, and the values it indexes with, bound to one lane.
    fn in_lane<T>(
        &mut self,
        piece: &Piece<'_, 'k>,
        lane: usize,
        indices: &[&Index],
        each: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Binding { base, offset } = piece.first;
        self.vars.insert(piece.body.lane.id, Binding { base, offset: offset + lane as i64 });
        for val in indices.iter().flat_map(|i| i.values()) {
            if let Some(vector) = piece.values[val].expand() {
                let value = self.at(self.top_index(), |ins| ins.extractlane(vector, lane as u8));
                self.constants[val] = None;
                self.scalars[val] = value.into();
            }
        }
        let result = each(self);
        self.vars.insert(piece.body.lane.id, piece.first);
        result
    }

    fn load_lanes(
        &mut self,
        piece: &Piece<'_, 'k>,
        buffer: Buffer,
        access: &Access<'_>,
        guards: &[Guard],
    ) -> Result<ir::Value, Error> {
        let data = &self.kernel.buffers[buffer];
        let dtype = data.dtype;
        let index = access.index();
        let lanes = piece.lanes;
        if data.role == Role::Register {
            if access.is_contiguous() && guards.is_empty() && self.registers[buffer].lanes > 1 {
                let at = self.register_position(buffer, index)?;
                return Ok(self.read_register_lanes(buffer, at, lanes));
            }
        } else if access.is_contiguous()
            && self.whole_width(dtype, lanes)
            && let Some(whole) = self.guarded_piece(piece, guards)?
        {
            return self.load_piece(piece, buffer, index, guards, whole);
        }
        self.load_each_lane(piece, buffer, index, guards)
    }

    /// Whether all lanes of a piece pass those guards that differ by lane, or `None` if that cannot be told
    /// from the first and the last lane.
    fn guarded_piece(&mut self, piece: &Piece<'_, 'k>, guards: &[Guard]) -> Result<Option<Number>, Error> {
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
            (Number::Value(a), Number::Value(b)) => {
                Number::Value(self.pure(Key::Both(a, b), &[a, b], |ins| ins.band(a, b)))
            }
        }))
    }

    /// Loads a contiguous piece at once where all lanes pass their guards, and lane by lane elsewhere.
    fn load_piece(
        &mut self,
        piece: &Piece<'_, 'k>,
        buffer: Buffer,
        index: &Index,
        guards: &[Guard],
        whole: Number,
    ) -> Result<ir::Value, Error> {
        let steady: Vec<Guard> =
            guards.iter().filter(|g| !g.index.mentions(piece.body.lane)).cloned().collect();
        match whole {
            Number::Known(0) => self.load_each_lane(piece, buffer, index, guards),
            Number::Known(_) => self.load_whole(piece, buffer, index, &steady),
            Number::Value(whole) => {
                let join = self.func.dfg.make_block();
                let sides = [0, 1].map(|_| self.func.dfg.make_block());
                let entry = self.ins(|ins| ins.brif(whole, sides[0], &[], sides[1], &[]));
                self.top().before = Some(entry);
                let mut ty = types::INVALID;
                for (at, side) in sides.into_iter().enumerate() {
                    self.func.layout.append_block(side);
                    self.regions.push(Region::new(RegionKind::Branch, side));
                    let value = match at {
                        0 => self.load_whole(piece, buffer, index, &steady)?,
                        _ => self.load_each_lane(piece, buffer, index, guards)?,
                    };
                    ty = self.func.dfg.value_type(value);
                    self.ins(|ins| ins.jump(join, &[ir::BlockArg::Value(value)]));
                    self.regions.pop();
                }
                self.func.layout.append_block(join);
                self.top().block = join;
                self.top().before = None;
                let value = self.func.dfg.append_block_param(join, ty);
                self.home[value] = self.top_index() as u32;
                Ok(value)
            }
        }
    }

    /// Loads a contiguous piece under guards that are the same for every lane.
    fn load_whole(
        &mut self,
        piece: &Piece<'_, 'k>,
        buffer: Buffer,
        index: &Index,
        guards: &[Guard],
    ) -> Result<ir::Value, Error> {
        let address = match self.guards(guards)? {
            // It fails for every lane.
            Some(Number::Known(_)) => return self.load_each_lane(piece, buffer, index, guards),
            Some(Number::Value(condition)) => {
                let address = self.address(buffer, index)?;
                (self.guarded_address(address, condition), 0)
            }
            None => self.address(buffer, index)?,
        };
        Ok(self.load_vector(buffer, address, piece.lanes))
    }

    fn load_each_lane(
        &mut self,
        piece: &Piece<'_, 'k>,
        buffer: Buffer,
        index: &Index,
        guards: &[Guard],
    ) -> Result<ir::Value, Error> {
        let dtype = self.kernel.buffers[buffer].dtype;
        let mut elements: SmallVec<[ir::Value; 16]> = SmallVec::new();
        let indices: Vec<&Index> = std::iter::once(index).chain(guards.iter().map(|g| &g.index)).collect();
        for lane in 0..piece.lanes {
            elements.push(self.in_lane(piece, lane, &indices, |e| e.scalar_load(buffer, index, guards))?);
        }
        Ok(self.scalars_to_lanes(dtype, &elements))
    }

    /// Whether this many elements can be loaded and stored as one piece.
    fn whole_width(&self, dtype: DType, lanes: usize) -> bool {
        lanes * dtype.size() == 16 || (self.machine.little_endian && lanes > 1)
    }

    /// Loads contiguous elements into the low lanes of a vector.
    fn load_vector(&mut self, buffer: Buffer, address: (ir::Value, i32), lanes: usize) -> ir::Value {
        let dtype = self.kernel.buffers[buffer].dtype;
        let ty = vector_type(dtype);
        let (part, spread) = match lanes * dtype.size() {
            16 => (ty, ty),
            8 => (types::F64, types::F64X2),
            4 => (types::F32, types::F32X4),
            _ => (types::I16, types::I16X8),
        };
        let loaded = self.load(buffer, address, part);
        let region = self.home[loaded] as usize;
        let vector = match part == ty {
            true => loaded,
            false => {
                let wide = self
                    .cached(region, Key::Splat(loaded, spread), |ins| ins.scalar_to_vector(spread, loaded));
                self.as_type(region, ty, wide)
            }
        };
        match dtype {
            DType::Bool => {
                let zero = self.bits_for(region, 0, ty);
                self.at(region, |ins| ins.icmp(IntCC::NotEqual, vector, zero))
            }
            _ => vector,
        }
    }

    /// The same 128 bits as another type.
    pub(super) fn as_type(&mut self, region: usize, ty: Type, vector: ir::Value) -> ir::Value {
        if self.func.dfg.value_type(vector) == ty {
            return vector;
        }
        let endianness = match self.machine.little_endian {
            true => ir::Endianness::Little,
            false => ir::Endianness::Big,
        };
        let flags = MemFlagsData::new().with_endianness(endianness);
        self.at(region, |ins| ins.bitcast(ty, flags, vector))
    }

    fn store_lanes(
        &mut self,
        piece: &Piece<'_, 'k>,
        buffer: Buffer,
        access: &Access<'_>,
        val: Val,
    ) -> Result<(), Error> {
        let data = &self.kernel.buffers[buffer];
        let dtype = data.dtype;
        let index = access.index();
        let lanes = piece.lanes;
        let value = self.lanes_of(piece, val)?;
        if access.is_contiguous() && data.role == Role::Register && self.registers[buffer].lanes > 1 {
            let at = self.register_position(buffer, index)?;
            self.write_register_lanes(buffer, at, lanes, value);
            return Ok(());
        }
        if access.is_contiguous() && data.role != Role::Register && self.whole_width(dtype, lanes) {
            let top = self.top_index();
            let stored = match dtype {
                DType::Bool => {
                    let bytes = self.mask(top, value, 1);
                    let one = self.bits(0x01, types::I8X16);
                    self.at(top, |ins| ins.band(bytes, one))
                }
                _ => value,
            };
            let (address, displacement) = self.address(buffer, index)?;
            let stored = match lanes * dtype.size() {
                16 => stored,
                bytes => {
                    let (wide, lane) = match bytes {
                        8 => (types::F64X2, types::F64),
                        4 => (types::F32X4, types::F32),
                        _ => (types::I16X8, types::I16),
                    };
                    debug_assert_eq!(wide.lane_type(), lane);
                    let wide = self.as_type(top, wide, stored);
                    self.at(top, |ins| ins.extractlane(wide, 0))
                }
            };
            self.ins(|ins| ins.store(memory(), stored, address, displacement));
            return Ok(());
        }
        for lane in 0..lanes {
            let element = match piece.body.varies(val) {
                true => self.lane_scalar(self.top_index(), dtype, value, lane),
                false => self.scalar(val)?,
            };
            self.in_lane(piece, lane, &[index], |e| e.store_scalar(buffer, index, element))?;
        }
        Ok(())
    }

    /// One lane as a scalar.
    fn lane_scalar(&mut self, region: usize, dtype: DType, vector: ir::Value, lane: usize) -> ir::Value {
        let element = self.at(region, |ins| ins.extractlane(vector, lane as u8));
        match dtype {
            DType::Bool => {
                let zero = self.bits_for(region, 0, self.func.dfg.value_type(element));
                self.at(region, |ins| ins.icmp(IntCC::NotEqual, element, zero))
            }
            _ => element,
        }
    }

    /// Scalars as the low lanes of a vector.
    fn scalars_to_lanes(&mut self, dtype: DType, elements: &[ir::Value]) -> ir::Value {
        let vector = self.gather_lanes(vector_type(dtype), elements);
        match dtype {
            DType::Bool => {
                let region = self.home[vector] as usize;
                self.at(region, |ins| ins.ineg(vector))
            }
            _ => vector,
        }
    }

    fn index_lanes(&mut self, piece: &Piece<'_, 'k>, index: &Index) -> Result<ir::Value, Error> {
        let steady = index.values().iter().all(|&v| !piece.body.varies(v));
        if let (Some(stride), true) = (index.coefficient(piece.body.lane), steady) {
            let number = self.index(index)?;
            let first = self.number(number);
            let region = self.hoisted(&[first]);
            let spread =
                self.cached(region, Key::Splat(first, types::I64X2), |ins| ins.splat(types::I64X2, first));
            let mut steps = [0u8; 16];
            steps[8..].copy_from_slice(&stride.to_le_bytes());
            if !self.machine.little_endian {
                steps.reverse();
            }
            let steps = self.func.dfg.constants.insert(steps.to_vec().into());
            let constants = self.constant_region();
            let steps = self.cached(constants, Key::Iota(stride), |ins| ins.vconst(types::I64X2, steps));
            let region = self.hoisted(&[spread, steps]);
            return Ok(self.at(region, |ins| ins.iadd(spread, steps)));
        }
        let mut elements: SmallVec<[ir::Value; 16]> = SmallVec::new();
        for lane in 0..piece.lanes {
            elements.push(self.in_lane(piece, lane, &[index], |e| {
                let number = e.index(index)?;
                Ok(e.number(number))
            })?);
        }
        Ok(self.gather_lanes(types::I64X2, &elements))
    }

    fn inside_lanes(&mut self, piece: &Piece<'_, 'k>, guards: &[Guard]) -> Result<ir::Value, Error> {
        let indices: Vec<&Index> = guards.iter().map(|g| &g.index).collect();
        let mut elements: SmallVec<[ir::Value; 16]> = SmallVec::new();
        for lane in 0..piece.lanes {
            elements.push(self.in_lane(piece, lane, &indices, |e| {
                Ok(match e.guards(guards)? {
                    None => e.bits(1, types::I8),
                    Some(Number::Known(n)) => e.bits(n as u64, types::I8),
                    Some(Number::Value(value)) => value,
                })
            })?);
        }
        Ok(self.scalars_to_lanes(DType::Bool, &elements))
    }

    /// A value in every lane.
    fn lanes_of(&mut self, piece: &Piece<'_, 'k>, val: Val) -> Result<ir::Value, Error> {
        match piece.values[val].expand() {
            Some(value) => Ok(value),
            None => self.spread(val),
        }
    }

    /// A value that is the same in every lane, in every lane.
    fn spread(&mut self, val: Val) -> Result<ir::Value, Error> {
        let dtype = self.kernel.vals[val];
        let ty = vector_type(dtype);
        if let Some(bits) = self.constants[val] {
            let bits = if dtype == DType::Bool { bits.wrapping_neg() } else { bits };
            return Ok(self.bits(bits, ty));
        }
        let scalar = self.scalar(val)?;
        let region = self.hoisted(&[scalar]);
        let spread = self.cached(region, Key::Splat(scalar, ty), |ins| ins.splat(ty, scalar));
        Ok(match dtype {
            DType::Bool => self.cached(region, Key::Negated(spread), |ins| ins.ineg(spread)),
            _ => spread,
        })
    }

    /// Ends the block with a value just loaded and spread, and goes on with it as a parameter of the next.
    /// A load is only made part of the instruction that spreads it if that has a single use, which the
    /// parameter is; the jump itself vanishes.
    fn settle(&mut self, val: Val, spread: ir::Value) -> Result<(), Error> {
        let scalar = self.scalar(val)?;
        let top = self.top_index();
        let fresh = matches!(self.func.dfg.value_def(scalar), ir::ValueDef::Result(inst, _)
            if self.func.dfg.insts[inst].opcode() == ir::Opcode::Load
                && self.func.layout.last_inst(self.regions[top].block) == self.func.dfg.value_def(spread).inst());
        if !fresh || self.home[scalar] as usize != top || self.home[spread] as usize != top {
            return Ok(());
        }
        let ty = self.func.dfg.value_type(spread);
        let next = self.func.dfg.make_block();
        let param = self.func.dfg.append_block_param(next, ty);
        self.home[param] = top as u32;
        self.ins(|ins| ins.jump(next, &[ir::BlockArg::Value(spread)]));
        self.func.layout.append_block(next);
        self.regions[top].block = next;
        self.regions[top].cache.insert(Key::Splat(scalar, ty), param);
        Ok(())
    }

    fn apply_lanes(&mut self, piece: &Piece<'_, 'k>, f: ScalarFn, args: &[Val]) -> Result<ir::Value, Error> {
        let last = *args.last().expect("a function has operands");
        let dtype = self.kernel.vals[last];
        let mut values: SmallVec<[ir::Value; 3]> = SmallVec::new();
        for &arg in args {
            values.push(self.lanes_of(piece, arg)?);
        }
        // The instruction overwrites its first factor. In a register tile a varying factor is a load that
        // is about to end, and a uniform one is used for every vector of the row.
        if f == ScalarFn::Fma && !piece.body.varies(args[0]) && piece.body.varies(args[1]) {
            values.swap(0, 1);
        }
        let region = self.hoisted(&values);
        let count = args.get(1).filter(|&&a| !piece.body.varies(a)).and_then(|&a| self.constants[a]);
        if let Some(value) = self.vector_function(region, f, dtype, &values, count) {
            return Ok(value);
        }
        let types: SmallVec<[DType; 3]> = args.iter().map(|&a| self.kernel.vals[a]).collect();
        let mut elements: SmallVec<[ir::Value; 16]> = SmallVec::new();
        for lane in 0..piece.lanes {
            let mut scalars: SmallVec<[ir::Value; 3]> = SmallVec::new();
            for (&value, &ty) in values.iter().zip(&types) {
                scalars.push(self.lane_scalar(region, ty, value, lane));
            }
            elements.push(self.scalar_apply(region, f, dtype, &scalars)?);
        }
        let result = f.result_type(&types).unwrap_or(dtype);
        Ok(self.scalars_to_lanes(result, &elements))
    }
}

/// How many copies of a piece one iteration holds: enough that counting and jumping do not show.
fn copies(body: &Body<'_>) -> i64 {
    match body.instrs.len() {
        0..=6 => 4,
        7..=20 => 2,
        _ => 1,
    }
}
