//! What one piece of a vector loop is: instructions on vectors.
//!
//! A body's number of lanes is set by its widest element. A narrower value takes the low lanes of a
//! vector of its own type, so that every instruction works on the type it is for; only conversions,
//! masks and memory accesses see the difference. A bool is a mask (all ones or zeros) in lanes as wide
//! as what it was compared from. Functions without a vector instruction are applied lane by lane.

use smallvec::SmallVec;
use windlass_ir::loops::{Buffer, Guard, Index, Role, Val};
use windlass_ir::{DType, ScalarFn};

use super::{Binding, Emitter, Number};
use crate::error::Error;
use crate::ssa::{Condition, Op, Type, Value};
use crate::vector::{Access, Body, Instr};

/// One piece of a vector loop: a number of lanes that one set of instructions works on.
pub(super) struct Piece<'b, 'k> {
    pub(super) body: &'b Body<'k>,
    pub(super) lanes: usize,
    /// What the loop's variable is in lane 0.
    pub(super) first: Binding,
}

impl<'k> Emitter<'k> {
    /// Computes what is the same in every lane, and spreads to vectors what lanes use of it: straight
    /// after its load, an instruction that loads and spreads can be chosen.
    pub(super) fn uniforms(&mut self, body: &Body<'k>) -> Result<(), Error> {
        let outer = self.func.line;
        for (instr, stmt) in body.instrs.iter().zip(body.stmts) {
            self.enter(stmt);
            if let Instr::Uniform(binding) = instr {
                self.scalar_let(binding)?;
            }
            let used: &[Val] = match instr {
                Instr::Apply { args, .. } => args,
                Instr::Store { val, .. } => std::slice::from_ref(val),
                Instr::Uniform(_) | Instr::Load { .. } | Instr::Index { .. } | Instr::Inside { .. } => &[],
            };
            for &val in used.iter().filter(|&&v| !body.varies(v)) {
                self.spread(val)?;
            }
        }
        self.func.line = outer;
        Ok(())
    }

    pub(super) fn piece(&mut self, body: &Body<'k>, lanes: usize, first: Binding) -> Result<(), Error> {
        self.vars.insert(body.lane.id, first);
        let piece = Piece { body, lanes, first };
        let outer = self.func.line;
        for (instr, stmt) in body.instrs.iter().zip(body.stmts) {
            self.enter(stmt);
            let (val, value) = match instr {
                Instr::Uniform(_) => continue,
                Instr::Store { buffer, access, val } => {
                    self.store_lanes(&piece, *buffer, access, *val)?;
                    continue;
                }
                Instr::Load { val, .. } if let Some(&made) = self.columns.get(val) => (*val, made),
                Instr::Load { val, buffer, access, guards } => {
                    (*val, self.load_lanes(&piece, *buffer, access, guards)?)
                }
                Instr::Index { val, index } => (*val, self.index_lanes(&piece, index)?),
                Instr::Inside { val, guards } => (*val, self.inside_lanes(&piece, guards)?),
                Instr::Apply { val, function, args } => (*val, self.apply_lanes(&piece, *function, args)?),
            };
            self.vectors[val] = value.into();
        }
        self.func.line = outer;
        Ok(())
    }

    /// Runs `each` with the loop's variable, and the values it indexes with, bound to one lane.
    pub(super) fn in_lane<T>(
        &mut self,
        piece: &Piece<'_, 'k>,
        lane: usize,
        indices: &[&Index],
        each: impl FnOnce(&mut Self) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let Binding { base, offset } = piece.first;
        self.vars.insert(piece.body.lane.id, Binding { base, offset: offset + lane as i64 });
        for val in indices.iter().flat_map(|i| i.values()) {
            if let Some(vector) = self.vector(piece, val) {
                let value = match self.memory_of(piece, val) {
                    Some((buffer, index)) => self.scalar_load(buffer, index, &[])?,
                    None => self.at(self.top_index(), Op::Extract(lane as u8), &[vector]),
                };
                self.constants[val] = None;
                self.scalars[val] = value.into();
            }
        }
        let result = each(self);
        self.vars.insert(piece.body.lane.id, piece.first);
        result
    }

    /// Where the lanes of a value were loaded from, one behind another, if they are still there.
    fn memory_of<'b>(&self, piece: &Piece<'b, 'k>, val: Val) -> Option<(Buffer, &'b Index)> {
        let instrs = &piece.body.instrs;
        let (from, index) = instrs.iter().find_map(|instr| match instr {
            Instr::Load { val: loaded, buffer, access, guards: [] } if *loaded == val => {
                access.is_contiguous().then(|| (*buffer, access.index()))
            }
            _ => None,
        })?;
        // A result may be where an operand was: it stays as long as nothing is stored but at the end.
        let stores = |instr: &Instr<'_>| matches!(instr, Instr::Store { .. });
        let stored_last = instrs.iter().skip_while(|instr| !stores(instr)).all(stores);
        let in_memory = matches!(self.kernel.buffers[from].role, Role::In | Role::Stack);
        (in_memory && stored_last).then_some((from, index))
    }

    /// The vector of a value that differs by lane.
    fn vector(&self, piece: &Piece<'_, 'k>, val: Val) -> Option<Value> {
        self.vectors[val].expand().filter(|_| piece.body.varies(val))
    }

    /// The same bits as another type.
    pub(super) fn as_type(&mut self, region: usize, ty: Type, vector: Value) -> Value {
        match self.func.ty(vector) == ty {
            true => vector,
            false => self.typed(region, Op::Bitcast, ty, &[vector]),
        }
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
        if access.is_contiguous() && data.role == Role::Register && self.registers[&buffer].lanes() > 1 {
            let at = self.register_position(buffer, index)?;
            self.write_register_lanes(buffer, at, lanes, value);
            return Ok(());
        }
        if access.is_contiguous() && data.role != Role::Register && self.whole_width(dtype, lanes) {
            let top = self.top_index();
            let stored = match dtype {
                DType::Bool => {
                    let bytes = self.mask(top, value, 1);
                    let one = self.bits(0x01, self.machine.vector_type(dtype));
                    self.at(top, Op::And, &[bytes, one])
                }
                _ => value,
            };
            let (address, offset) = self.address(buffer, index)?;
            let bytes = (lanes * dtype.size()) as u8;
            self.effect(Op::Store { offset, bytes }, &[stored, address]);
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
    fn lane_scalar(&mut self, region: usize, dtype: DType, vector: Value, lane: usize) -> Value {
        let element = self.at(region, Op::Extract(lane as u8), &[vector]);
        match dtype {
            DType::Bool => {
                let zero = self.bits_for(region, 0, self.func.ty(element));
                self.at(region, Op::Compare(Condition::Ne), &[element, zero])
            }
            _ => element,
        }
    }

    /// Scalars as the low lanes of a vector.
    pub(super) fn scalars_to_lanes(&mut self, dtype: DType, elements: &[Value]) -> Value {
        let vector = self.gather_lanes(self.machine.vector_type(dtype), elements);
        match dtype {
            DType::Bool => {
                let region = self.home[vector] as usize;
                self.at(region, Op::Neg, &[vector])
            }
            _ => vector,
        }
    }

    fn index_lanes(&mut self, piece: &Piece<'_, 'k>, index: &Index) -> Result<Value, Error> {
        let steady = index.values().iter().all(|&v| !piece.body.varies(v));
        if let (Some(stride), true) = (index.coefficient(piece.body.lane), steady) {
            let number = self.index(index)?;
            let first = self.number(number);
            let region = self.hoisted(&[first]);
            let ty = self.machine.vector_type(DType::I64);
            let spread = self.cached(region, Op::Splat, ty, &[first]);
            let steps = self.cached(self.constant_region(), Op::Iota { step: stride, group: 1 }, ty, &[]);
            let region = self.hoisted(&[spread, steps]);
            return Ok(self.at(region, Op::Add, &[spread, steps]));
        }
        let mut elements: SmallVec<[Value; 16]> = SmallVec::new();
        for lane in 0..piece.lanes {
            elements.push(self.in_lane(piece, lane, &[index], |e| {
                let number = e.index(index)?;
                Ok(e.number(number))
            })?);
        }
        Ok(self.gather_lanes(self.machine.vector_type(DType::I64), &elements))
    }

    fn inside_lanes(&mut self, piece: &Piece<'_, 'k>, guards: &[Guard]) -> Result<Value, Error> {
        let indices: Vec<&Index> = guards.iter().map(|g| &g.index).collect();
        let mut elements: SmallVec<[Value; 16]> = SmallVec::new();
        for lane in 0..piece.lanes {
            elements.push(self.in_lane(piece, lane, &indices, |e| {
                Ok(match e.guards(guards)? {
                    None => e.bits(1, Type::I8),
                    Some(Number::Known(n)) => e.bits(n as u64, Type::I8),
                    Some(Number::Value(value)) => value,
                })
            })?);
        }
        Ok(self.scalars_to_lanes(DType::Bool, &elements))
    }

    /// A value in every lane.
    fn lanes_of(&mut self, piece: &Piece<'_, 'k>, val: Val) -> Result<Value, Error> {
        match self.vector(piece, val) {
            Some(value) => Ok(value),
            None => self.spread(val),
        }
    }

    /// A value that is the same in every lane, in every lane.
    fn spread(&mut self, val: Val) -> Result<Value, Error> {
        let dtype = self.kernel.vals[val];
        let ty = self.machine.vector_type(dtype);
        if let Some(bits) = self.constants[val] {
            let bits = if dtype == DType::Bool { bits.wrapping_neg() } else { bits };
            return Ok(self.bits(bits, ty));
        }
        let scalar = self.scalar(val)?;
        let region = self.hoisted(&[scalar]);
        let spread = self.cached(region, Op::Splat, ty, &[scalar]);
        Ok(match dtype {
            DType::Bool => self.cached(region, Op::Neg, ty, &[spread]),
            _ => spread,
        })
    }

    fn apply_lanes(&mut self, piece: &Piece<'_, 'k>, f: ScalarFn, args: &[Val]) -> Result<Value, Error> {
        let last = *args.last().expect("a function has operands");
        let dtype = self.kernel.vals[last];
        let mut values: SmallVec<[Value; 3]> = SmallVec::new();
        for &arg in args {
            values.push(self.lanes_of(piece, arg)?);
        }
        let region = self.hoisted(&values);
        let count = args.get(1).filter(|&&a| !piece.body.varies(a)).and_then(|&a| self.constants[a]);
        if let Some(value) = self.vector_function(region, f, dtype, &values, count) {
            return Ok(value);
        }
        let types: SmallVec<[DType; 3]> = args.iter().map(|&a| self.kernel.vals[a]).collect();
        let mut elements: SmallVec<[Value; 16]> = SmallVec::new();
        for lane in 0..piece.lanes {
            let mut scalars: SmallVec<[Value; 3]> = SmallVec::new();
            for (&value, &ty) in values.iter().zip(&types) {
                scalars.push(self.lane_scalar(region, ty, value, lane));
            }
            elements.push(self.scalar_apply(region, f, dtype, &scalars)?);
        }
        let result = f.result_type(&types).unwrap_or(dtype);
        Ok(self.scalars_to_lanes(result, &elements))
    }
}
