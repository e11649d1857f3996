//! What a scan lowers to: copies of its body where they are few, else its body to be run for each position.

use super::scan::{Parts, Scan};
use super::{Concat, Lowered, Reshape, Slice, Transpose};
use crate::error::Error;
use crate::graph::{Builder, Graph, NodeData, Value, Values, late_operands};
use crate::tensor::Tensor;
use crate::types::TensorType;

/// A scan along first axes whose body and operands have known sizes.
#[derive(Clone, Debug)]
pub struct Repeated {
    /// What runs for each position. Its operands are the states, a slice of each scanned tensor, and what is the same for
    /// all positions; its results are the next states, and a slice of each stacked result.
    pub body: Graph,
    /// The number of positions.
    pub times: usize,
    /// The number of states.
    pub states: usize,
    /// For each scanned tensor, whether it is read from its end.
    pub scanned: Vec<bool>,
    /// For each stacked result, whether it is written from its end.
    pub stacked: Vec<bool>,
}

/// Bodies are copied for each position if that makes at most this many nodes: they may then fuse with each other.
const COPIED_NODES: usize = 16;

/// Bodies that no loop can be made of are copied for at most this many positions, and at most this many nodes in all.
const UNROLLED: (usize, usize) = (64, 2048);

impl Scan {
    pub(super) fn lowered(&self, ins: &[TensorType], parts: &Parts, length: usize) -> Result<Lowered, Error> {
        let given = |axes: &[i64]| axes.iter().any(|&axis| axis != 0);
        if given(&self.scan_input_axes) || given(&self.scan_output_axes) {
            return Lowered::graph(ins, |b, ins| self.along_first_axes(b, ins, parts));
        }
        let repeated = self.repeated(ins, parts, length)?;
        let is_open = |data: &NodeData| {
            !late_operands(&data.op).is_empty()
                || data.outs.iter().any(|&v| repeated.body.ty(v).as_shape().is_none())
        };
        if repeated.body.nodes().any(|(_, data)| is_open(data)) {
            return Ok(Lowered::Interpret);
        }
        match length.saturating_mul(repeated.body.node_count()) {
            0..=COPIED_NODES => Ok(Lowered::Graph(Box::new(repeated.copied(ins)?))),
            _ => Ok(Lowered::Repeated(Box::new(repeated))),
        }
    }

    fn repeated(&self, ins: &[TensorType], parts: &Parts, times: usize) -> Result<Repeated, Error> {
        let body = self.body_at(parts, &ins.iter().collect::<Vec<_>>())?;
        let stacks = body.outputs().len() - parts.states;
        let backward = |list: &[i64], count| (0..count).map(|i| Scan::is_backward(list, i)).collect();
        Ok(Repeated {
            body,
            times,
            states: parts.states,
            scanned: backward(&self.scan_input_directions, parts.scanned.len()),
            stacked: backward(&self.scan_output_directions, stacks),
        })
    }

    /// The same scan of transposed tensors, its results transposed back.
    fn along_first_axes(&self, b: &mut Builder, ins: &[Value], parts: &Parts) -> Result<Values, Error> {
        let mut operands = ins.to_vec();
        for (operand, &axis) in operands[parts.scanned.clone()].iter_mut().zip(&parts.axes) {
            let rank = b.ty(*operand).rank();
            let perm = std::iter::once(axis).chain((0..rank).filter(|&dim| dim != axis));
            *operand = moved(b, *operand, perm.collect())?;
        }
        let scan = Scan { scan_input_axes: Vec::new(), scan_output_axes: Vec::new(), ..self.clone() };
        let mut outs = b.push(scan, &operands, None)?;
        for (i, out) in outs[parts.states..].iter_mut().enumerate() {
            let rank = b.ty(*out).rank();
            let axis = self.stacked_axis(i, rank - 1);
            let mut perm: Vec<usize> = (1..rank).collect();
            perm.insert(axis, 0);
            *out = moved(b, *out, perm)?;
        }
        Ok(outs)
    }
}

fn moved(b: &mut Builder, x: Value, perm: Vec<usize>) -> Result<Value, Error> {
    match perm.is_sorted() {
        true => Ok(x),
        false => b.push1(Transpose::by(&perm), &[x]),
    }
}

impl Repeated {
    /// A copy of the body for each position, if there are not too many.
    pub fn unrolled(&self, ins: &[TensorType]) -> Result<Option<Graph>, Error> {
        let nodes = self.times.saturating_mul(self.body.node_count());
        let is_small = self.times <= UNROLLED.0 && nodes <= UNROLLED.1;
        is_small.then(|| self.copied(ins)).transpose()
    }

    /// A copy of the body for each position.
    pub(crate) fn copied(&self, ins: &[TensorType]) -> Result<Graph, Error> {
        super::decompose(ins, |b, ins| self.copies(b, ins))
    }

    fn copies(&self, b: &mut Builder, ins: &[Value]) -> Result<Values, Error> {
        let mut operands = ins.to_vec();
        let mut stacks: Vec<Vec<Value>> = vec![Vec::new(); self.stacked.len()];
        for step in 0..self.times {
            for (i, &backward) in self.scanned.iter().enumerate() {
                let (place, at) = (self.states + i, if backward { self.times - 1 - step } else { step });
                let part = b.push1(Slice::along(0, at as i64, at as i64 + 1), &[ins[place]])?;
                let shape = b.ty(ins[place]).shape();
                operands[place] = b.push1(Reshape::to(&shape[1..]), &[part])?;
            }
            let results = b.inline(&self.body, &operands)?;
            operands[..self.states].copy_from_slice(&results[..self.states]);
            for (stack, &part) in stacks.iter_mut().zip(&results[self.states..]) {
                let shape = b.ty(part).shape();
                stack.push(b.push1(Reshape::to(&[&[1], &shape[..]].concat()), &[part])?);
            }
        }
        let mut results = Values::from_slice(&operands[..self.states]);
        for ((i, mut stack), &backward) in stacks.into_iter().enumerate().zip(&self.stacked) {
            if backward {
                stack.reverse();
            }
            let part = self.body.ty(self.body.outputs()[self.states + i].1);
            results.push(match stack.is_empty() {
                true => b.constant(Tensor::zeros(part.dtype, &[&[0], &part.shape()[..]].concat())),
                false => b.push1(Concat { axis: 0 }, &stack)?,
            });
        }
        Ok(results)
    }
}
