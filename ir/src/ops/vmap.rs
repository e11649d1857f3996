//! Rules of vectorization: what a rule is given, what it answers, and the few graph idioms that rules share.
//!
//! A rule stands in its op's file as [`super::OpDef::vmap`]. It adds nodes to a builder that compute, from operands of
//! which some have one more dimension before all others, the results for every position along that dimension, in one
//! piece: an axis moves by one, a batch that an op has anyway becomes longer, a convolution of weights of every example
//! becomes a grouped one. [`crate::vmap`] walks over a graph with them.

use std::sync::Arc;

use smallvec::SmallVec;

use super::Op;
use crate::dtype::DType;
use crate::error::Error;
use crate::graph::{Builder, Graph, Value, Values};
use crate::ops::Iota;
use crate::types::{Shape, TensorType, normalize_axis};

/// What a rule works with. Every dimension is fixed, late attributes are known, and at least one operand is batched.
pub struct VmapCx<'b> {
    /// Where the rule adds nodes.
    pub builder: &'b mut Builder,
    /// The operands.
    pub ins: &'b [Value],
    /// Which operands have the batch as their first dimension; the others are the same for every example.
    pub batched: &'b [bool],
    /// The types of the results of one example.
    pub outs: &'b [TensorType],
    /// The number of examples.
    pub batch: usize,
    /// The name of the node.
    pub name: Option<Arc<str>>,
}

/// What a rule answers.
#[derive(Clone, Debug, PartialEq)]
pub enum Vmap {
    /// The results, each with the batch as its first dimension.
    Values(Values),
    /// A graph of one example that computes the results from the operands by other ops: it is vectorized in its stead.
    Through(Box<Graph>),
    /// The op is run for one example after the other.
    OneByOne,
}

impl VmapCx<'_> {
    /// The type of an operand of one example.
    pub fn ty(&self, operand: usize) -> TensorType {
        let mut ty = self.builder.ty(self.ins[operand]).clone();
        if self.batched[operand] {
            ty.dims.remove(0);
        }
        ty
    }

    /// The types of the operands of one example.
    pub fn types(&self) -> Vec<TensorType> {
        (0..self.ins.len()).map(|i| self.ty(i)).collect()
    }

    /// The number of dimensions of an operand of one example.
    pub fn rank(&self, operand: usize) -> usize {
        self.builder.ty(self.ins[operand]).rank() - usize::from(self.batched[operand])
    }

    /// Where an axis of an operand of one example is in a batch of them.
    pub fn axis(&self, axis: i64, operand: usize) -> i64 {
        normalize_axis(axis, self.rank(operand)).expect("infer accepted the axis") as i64 + 1
    }

    /// A shape after the batch.
    pub fn over_batch(&self, shape: &[usize]) -> Shape {
        std::iter::once(self.batch).chain(shape.iter().copied()).collect()
    }

    /// An operand with the batch as its first dimension, repeated if it is the same for every example.
    pub fn with_batch(&mut self, operand: usize) -> Result<Value, Error> {
        let value = self.ins[operand];
        if self.batched[operand] {
            return Ok(value);
        }
        let shape = self.over_batch(&self.builder.ty(value).shape());
        self.builder.broadcast(value, &shape)
    }

    /// Every operand with the batch as its first dimension.
    pub fn all_with_batch(&mut self) -> Result<Values, Error> {
        (0..self.ins.len()).map(|i| self.with_batch(i)).collect()
    }

    /// An operand that broadcasts as one of this rank does: dimensions of 1 stand after the batch.
    pub fn aligned(&mut self, operand: usize, rank: usize) -> Result<Value, Error> {
        let value = self.ins[operand];
        if !self.batched[operand] {
            return Ok(value);
        }
        let mut shape = self.builder.ty(value).shape();
        for _ in shape.len()..=rank {
            shape.insert(1, 1);
        }
        self.builder.reshape(value, &shape)
    }

    /// The results of an op on these operands.
    pub fn push(&mut self, op: impl Into<Arc<Op>>, ins: &[Value]) -> Result<Vmap, Error> {
        Ok(Vmap::Values(self.builder.push(op, ins, self.name.clone())?))
    }

    /// The results of an op whose operands broadcast.
    pub fn broadcasting(&mut self, op: impl Into<Arc<Op>>) -> Result<Vmap, Error> {
        let rank = (0..self.ins.len()).map(|i| self.rank(i)).max().unwrap_or(0);
        let ins: Values = (0..self.ins.len()).map(|i| self.aligned(i, rank)).collect::<Result<_, _>>()?;
        self.push(op, &ins)
    }

    /// The first operand under the result's shape.
    pub fn reshaped(&mut self) -> Result<Vmap, Error> {
        let shape = self.over_batch(&self.outs[0].shape());
        Ok(Vmap::Values(Values::from_slice(&[self.builder.reshape(self.ins[0], &shape)?])))
    }

    /// Whether the batch is a dimension of none but the first operand.
    pub fn first_alone(&self) -> bool {
        self.batched[0] && !self.batched[1..].contains(&true)
    }

    /// The op itself, or one with other axes, where the batch is a dimension of the first operand alone.
    pub fn along(&mut self, op: impl Into<Arc<Op>>) -> Result<Vmap, Error> {
        match self.first_alone() {
            true => self.push(op, self.ins),
            false => Ok(Vmap::OneByOne),
        }
    }

    /// The op on examples put together along a batch that it has anyway: that is dimension `at` of each operand (none
    /// if that must be the same for every example) and `of` of each result.
    pub fn merged(
        &mut self,
        op: impl Into<Arc<Op>>,
        at: &[Option<usize>],
        of: &[usize],
    ) -> Result<Vmap, Error> {
        if self.batched.iter().zip(at).any(|(&batched, at)| batched && at.is_none()) {
            return Ok(Vmap::OneByOne);
        }
        let mut ins = Vec::new();
        for (i, &at) in at.iter().enumerate() {
            ins.push((if at.is_some() { self.with_batch(i)? } else { self.ins[i] }, at));
        }
        self.merged_values(op, &ins, of)
    }

    /// [`Self::merged`] of values that have the batch where they are to be put together.
    pub fn merged_values(
        &mut self,
        op: impl Into<Arc<Op>>,
        ins: &[(Value, Option<usize>)],
        of: &[usize],
    ) -> Result<Vmap, Error> {
        let merged = ins.iter().map(|&(value, at)| at.map_or(Ok(value), |at| self.merge(value, at)));
        let ins: Values = merged.collect::<Result<_, _>>()?;
        let outs = self.builder.push(op, &ins, self.name.clone())?;
        let split = outs.iter().zip(of).map(|(&out, &at)| self.split(out, at));
        Ok(Vmap::Values(split.collect::<Result<_, _>>()?))
    }

    /// A value of `[batch, .., n, ..]` as one of `[.., batch * n, ..]`, `n` being dimension `at` of one example.
    pub fn merge(&mut self, value: Value, at: usize) -> Result<Value, Error> {
        let mut shape = self.builder.ty(value).shape();
        let perm: Vec<usize> = (1..=at).chain([0]).chain(at + 1..shape.len()).collect();
        let value = self.builder.transpose(value, &perm)?;
        shape.remove(0);
        shape[at] *= self.batch;
        self.builder.reshape(value, &shape)
    }

    /// Undoes [`Self::merge`].
    pub fn split(&mut self, value: Value, at: usize) -> Result<Value, Error> {
        let mut shape = self.builder.ty(value).shape();
        shape[at] /= self.batch.max(1);
        shape.insert(at, self.batch);
        let value = self.builder.reshape(value, &shape)?;
        let perm: Vec<usize> = [at].into_iter().chain((0..shape.len()).filter(|&d| d != at)).collect();
        self.builder.transpose(value, &perm)
    }

    /// The number of each example, as `[batch, 1, ..]` of this rank.
    pub fn numbers(&mut self, dtype: DType, rank: usize) -> Result<Value, Error> {
        let mut shape: SmallVec<[i64; 6]> = SmallVec::from_elem(1, rank);
        shape[0] = self.batch as i64;
        self.builder.push1(Iota { shape: shape.to_vec().into(), axis: 0, dtype }, &[])
    }
}

/// One result with the batch as its first dimension.
pub fn one(value: Value) -> Result<Vmap, Error> {
    Ok(Vmap::Values(Values::from_slice(&[value])))
}
