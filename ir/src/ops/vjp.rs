//! Reverse-mode rules: what a rule is given, what it answers, and the few graph idioms that rules share.
//!
//! A rule stands in its op's file as [`super::OpDef::vjp`]. It adds nodes to a builder that compute, from the
//! operands, the results and the gradients of the results, the gradients of the operands. A rule is made of
//! ops, so what it builds is differentiated like anything else. [`crate::gradients`] walks over a graph with them.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{Op, Pad, PadMode, Reduce, ReduceKind};
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Builder, Value, Values};
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::Shape;

/// What a rule works with. Every dimension is fixed, late attributes are known, and each result that has a
/// gradient is a float.
pub struct VjpCx<'b> {
    /// Where the rule adds nodes.
    pub builder: &'b mut Builder,
    /// The operands.
    pub ins: &'b [Value],
    /// The results.
    pub outs: &'b [Value],
    /// The gradients of the results; `None` where nothing flows back.
    pub douts: &'b [Option<Value>],
    /// Which operands' gradients are asked for, all of them floats. A rule may leave out the others.
    pub wanted: &'b [bool],
}

/// The gradient of each operand; `None` where it is zero or not asked for.
pub type Gradients = SmallVec<[Option<Value>; 3]>;

/// What a rule answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Vjp {
    /// The gradients.
    Gradients(Gradients),
    /// Values that equal the results, computed from the operands by other ops: their gradients are these.
    Through(Values),
    /// There is no gradient: the results do not depend on the operands smoothly, or the op has no rule.
    Undefined,
}

impl VjpCx<'_> {
    /// The gradient of a result, zeros if nothing flows back to it.
    pub fn dout(&mut self, result: usize) -> Value {
        match self.douts[result] {
            Some(dout) => dout,
            None => {
                let ty = self.builder.ty(self.outs[result]).clone();
                self.builder.constant(Tensor::zeros(ty.dtype, &ty.shape()))
            }
        }
    }

    /// Lets values that the rule adds, which equal the results, stand in for them, so that they are not computed twice.
    pub fn stand_in(&mut self, values: &[Value]) {
        for (&out, &value) in self.outs.iter().zip(values) {
            self.builder.stand_in(out, value);
        }
    }

    /// A value's element type.
    pub fn dtype(&self, value: Value) -> DType {
        self.builder.ty(value).dtype
    }

    /// A value's shape.
    pub fn shape(&self, value: Value) -> Shape {
        self.builder.ty(value).shape()
    }

    /// Applies a scalar function.
    pub fn map(&mut self, f: ScalarFn, ins: &[Value]) -> Result<Value, Error> {
        self.builder.map(f, ins)
    }

    /// Adds a node of one result.
    pub fn push(&mut self, op: impl Into<Arc<Op>>, ins: &[Value]) -> Result<Value, Error> {
        self.builder.push1(op, ins)
    }

    /// `f(value, constant)`.
    pub fn with_constant(&mut self, f: ScalarFn, value: Value, constant: f64) -> Result<Value, Error> {
        let constant = self.builder.scalar_like(value, constant);
        self.builder.map(f, &[value, constant])
    }

    /// `value` where the condition holds, else 0.
    pub fn masked(&mut self, condition: Value, value: Value) -> Result<Value, Error> {
        let zero = self.builder.scalar_like(value, 0.0);
        self.builder.map(ScalarFn::Select, &[condition, value, zero])
    }

    /// The same elements under another shape.
    pub fn reshape(&mut self, value: Value, shape: &[usize]) -> Result<Value, Error> {
        self.builder.reshape(value, shape)
    }

    /// Dimensions in another order.
    pub fn transpose(&mut self, value: Value, perm: &[usize]) -> Result<Value, Error> {
        self.builder.transpose(value, perm)
    }

    /// Repeated along dimensions of size 1 up to a shape.
    pub fn broadcast(&mut self, value: Value, shape: &[usize]) -> Result<Value, Error> {
        self.builder.broadcast(value, shape)
    }

    /// Zeros before and after along an axis; negative counts crop.
    pub fn pad(&mut self, value: Value, axis: usize, before: i64, after: i64) -> Result<Value, Error> {
        if (before, after) == (0, 0) {
            return Ok(value);
        }
        let zero = self.builder.scalar_like(value, 0.0);
        let (pads, axes) = (vec![before, after].into(), vec![axis as i64].into());
        self.builder.push1(Pad { pads, axes, mode: PadMode::Constant }, &[value, zero])
    }

    /// A vector along one axis of values of a rank.
    pub fn per_channel(&mut self, vector: Value, axis: usize, rank: usize) -> Result<Value, Error> {
        let mut shape = Shape::from_elem(1, rank);
        shape[axis] = self.shape(vector)[0];
        self.reshape(vector, &shape)
    }

    /// The sum over axes, which stay with size 1 if `keep`.
    pub fn sum(&mut self, value: Value, axes: &[usize], keep: bool) -> Result<Value, Error> {
        let axes: Vec<i64> = axes.iter().map(|&axis| axis as i64).collect();
        match axes.is_empty() {
            true => Ok(value),
            false => self.builder.push1(Reduce::over(ReduceKind::Sum, &axes, keep), &[value]),
        }
    }

    /// The sum over every axis but one.
    pub fn sum_beside(&mut self, value: Value, axis: usize) -> Result<Value, Error> {
        let axes: Vec<usize> = (0..self.shape(value).len()).filter(|&d| d != axis).collect();
        self.sum(value, &axes, false)
    }

    /// What flows back to an operand of `shape` that was broadcast: the sum over the dimensions it was
    /// repeated along.
    pub fn sum_to(&mut self, value: Value, shape: &[usize]) -> Result<Value, Error> {
        let from = self.shape(value);
        let added = from.len() - shape.len();
        let repeated = |d: &usize| *d < added || (shape[d - added] == 1 && from[*d] != 1);
        let axes: Vec<usize> = (0..from.len()).filter(repeated).collect();
        let summed = self.sum(value, &axes, true)?;
        self.reshape(summed, shape)
    }
}

/// The gradients of an op of one operand.
pub fn one(gradient: Value) -> Result<Vjp, Error> {
    Ok(Vjp::Gradients(smallvec::smallvec![Some(gradient)]))
}

/// Values to differentiate in the results' stead.
pub fn through(value: Value) -> Result<Vjp, Error> {
    Ok(Vjp::Through(smallvec::smallvec![value]))
}
