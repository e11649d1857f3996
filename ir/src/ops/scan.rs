//! `scan`: a body run for each slice of its operands, with states passed from one to the next.

use std::sync::Arc;

use super::body::{infer_body, is_pure, join, placeholder, run_body, slice_at, stack};
use super::scan_vjp::Scanned;
use super::scan_vmap::BatchedScan;
use super::{Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::error::{Error, Violation};
use crate::graph::Graph;
use crate::require;
use crate::tensor::Tensor;
use crate::types::{Dim, Dims, TensorType, normalize_axis};

/// Runs the body once for each position along the scanned axes.
///
/// Operands are states, then `num_scan_inputs` tensors to scan, then `num_captures` that the body uses
/// of the graph around it. The body takes the states, a slice of each scanned tensor and the captures;
/// it gives the next states and results that are stacked along an axis. The results are the last
/// states and the stacks. Axes are 0 and directions forward where none are given.
///
/// - (C1) the counts fit the operands, with at least one tensor to scan;
/// - (C2) each scanned tensor has its axis, and all have one length;
/// - (C3) the body takes the operands, and gives states of the types of the first ones;
/// - (C4) there is an axis and a direction (0 or 1) a scanned or stacked tensor, or none.
///
/// ONNX: `Scan` (9..), by its importer.
#[derive(Clone, Debug, PartialEq)]
pub struct Scan {
    /// What runs.
    pub body: Arc<Graph>,
    /// How many operands are scanned.
    pub num_scan_inputs: i64,
    /// How many operands at the end are neither states nor scanned.
    pub num_captures: i64,
    /// The scanned axes.
    pub scan_input_axes: Vec<i64>,
    /// 1 for tensors scanned from the end.
    pub scan_input_directions: Vec<i64>,
    /// The stacked axes.
    pub scan_output_axes: Vec<i64>,
    /// 1 for results stacked from the end.
    pub scan_output_directions: Vec<i64>,
}

/// The parts of the operands.
pub(super) struct Parts {
    pub states: usize,
    pub scanned: std::ops::Range<usize>,
    pub axes: Vec<usize>,
}

impl Scan {
    fn parts(&self, ins: &[&TensorType]) -> Result<Parts, Violation> {
        let count = |n: i64| usize::try_from(n).unwrap_or(usize::MAX);
        let (scans, captures) = (count(self.num_scan_inputs), count(self.num_captures));
        let fits = scans > 0 && scans.saturating_add(captures) <= ins.len();
        require!(fits, "C1", "{} operands cannot have {scans} scanned and {captures} captured", ins.len());
        let states = ins.len() - scans - captures;
        let scanned = states..states + scans;
        let of_each = |list: &[i64], n: usize| list.is_empty() || list.len() == n;
        let given = of_each(&self.scan_input_axes, scans) && of_each(&self.scan_input_directions, scans);
        let directions = self.scan_input_directions.iter().chain(&self.scan_output_directions);
        let known = directions.copied().all(|d| d == 0 || d == 1);
        require!(given && known, "C4", "axes or directions do not fit {scans} scanned tensors");
        let mut axes = Vec::new();
        for (i, ty) in ins[scanned.clone()].iter().enumerate() {
            let axis = self.scan_input_axes.get(i).copied().unwrap_or(0);
            let at = normalize_axis(axis, ty.rank());
            require!(at.is_some(), "C2", "axis {axis} is outside {ty}");
            axes.push(at.unwrap_or(0));
        }
        Ok(Parts { states, scanned, axes })
    }

    /// The number of positions, as a dimension.
    fn length(parts: &Parts, ins: &[&TensorType]) -> Result<Dim, Violation> {
        let mut length = Dim::Unknown;
        for (ty, &axis) in ins[parts.scanned.clone()].iter().zip(&parts.axes) {
            let dim = &ty.dims[axis];
            require!(dim.may_equal(&length), "C2", "scanned tensors have {length} and {dim} positions");
            length = length.meet(dim);
        }
        Ok(length)
    }

    /// The body's results for one position; their first ones are the states.
    fn body_types(&self, parts: &Parts, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        let mut types: Vec<TensorType> = ins.iter().map(|t| (*t).clone()).collect();
        for (ty, &axis) in types[parts.scanned.clone()].iter_mut().zip(&parts.axes) {
            ty.dims.remove(axis);
        }
        let mut outs = infer_body(&self.body, &types, "C3")?;
        require!(outs.len() >= parts.states, "C3", "the body gives {} states", outs.len());
        for (next, state) in outs.iter_mut().zip(&types[..parts.states]) {
            let same = next.dims.iter().zip(&state.dims).all(|(a, b)| a.may_equal(b));
            let Some(joined) = join(next, state).filter(|_| same) else {
                return Err(Violation::new("C3", format!("a state {state} becomes {next}")));
            };
            *next = joined;
        }
        let stacks = outs.len() - parts.states;
        let of_each = |list: &[i64]| list.is_empty() || list.len() == stacks;
        let given = of_each(&self.scan_output_axes) && of_each(&self.scan_output_directions);
        require!(given, "C4", "axes or directions do not fit {stacks} stacked results");
        for (i, ty) in outs[parts.states..].iter().enumerate() {
            let axis = self.scan_output_axes.get(i).copied().unwrap_or(0);
            let fits = normalize_axis(axis, ty.rank() + 1).is_some();
            require!(fits, "C4", "results {ty} are not stacked along axis {axis}");
        }
        Ok(outs)
    }

    /// The body for slices of operands of these types.
    pub(super) fn body_at(&self, parts: &Parts, ins: &[&TensorType]) -> Result<Graph, Error> {
        let mut types: Vec<TensorType> = ins.iter().map(|ty| (*ty).clone()).collect();
        for (ty, &axis) in types[parts.scanned.clone()].iter_mut().zip(&parts.axes) {
            ty.dims.remove(axis);
        }
        self.body.with_input_types(&types)
    }

    /// The axis along which a result is stacked.
    pub(super) fn stacked_axis(&self, i: usize, rank: usize) -> usize {
        let axis = self.scan_output_axes.get(i).copied().unwrap_or(0);
        normalize_axis(axis, rank + 1).expect("infer accepted the axis")
    }

    pub(super) fn is_backward(directions: &[i64], i: usize) -> bool {
        directions.get(i).is_some_and(|&d| d == 1)
    }
}

impl OpDef for Scan {
    const NAMES: &'static [&'static str] = &["scan"];

    fn with_name(_: &str) -> Scan {
        Scan {
            body: placeholder(),
            num_scan_inputs: 1,
            num_captures: 0,
            scan_input_axes: Vec::new(),
            scan_input_directions: Vec::new(),
            scan_output_axes: Vec::new(),
            scan_output_directions: Vec::new(),
        }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("body", Slot::Graph(&mut self.body))?;
        codec.attr("num_scan_inputs", Slot::Int(&mut self.num_scan_inputs))?;
        codec.attr("num_captures", Slot::Int(&mut self.num_captures))?;
        codec.attr("scan_input_axes", Slot::Ints(&mut self.scan_input_axes))?;
        codec.attr("scan_input_directions", Slot::Ints(&mut self.scan_input_directions))?;
        codec.attr("scan_output_axes", Slot::Ints(&mut self.scan_output_axes))?;
        codec.attr("scan_output_directions", Slot::Ints(&mut self.scan_output_directions))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=usize::MAX)?;
        let parts = self.parts(ins)?;
        let length = Scan::length(&parts, ins)?;
        let mut outs = self.body_types(&parts, ins)?;
        for (i, ty) in outs[parts.states..].iter_mut().enumerate() {
            let axis = self.stacked_axis(i, ty.rank());
            let mut dims: Dims = std::mem::take(&mut ty.dims);
            dims.insert(axis, length.clone());
            ty.dims = dims;
        }
        Ok(outs)
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let types: Vec<TensorType> = ins.iter().map(Tensor::ty).collect();
        let types: Vec<&TensorType> = types.iter().collect();
        let parts = self.parts(&types).map_err(|v| v.to_string())?;
        let outs = self.body_types(&parts, &types).map_err(|v| v.to_string())?;
        let length = ins[parts.scanned.start].shape()[parts.axes[0]];
        let mut operands = ins.to_vec();
        let mut stacks: Vec<Vec<Tensor>> = vec![Vec::new(); outs.len() - parts.states];
        for step in 0..length {
            for (i, &axis) in parts.axes.iter().enumerate() {
                let backward = Scan::is_backward(&self.scan_input_directions, i);
                let at = if backward { length - 1 - step } else { step };
                operands[parts.scanned.start + i] = slice_at(&ins[parts.scanned.start + i], axis, at);
            }
            let mut results = run_body(&self.body, &operands)?.into_iter();
            for (state, next) in operands[..parts.states].iter_mut().zip(&mut results) {
                *state = next;
            }
            stacks.iter_mut().zip(results).for_each(|(stack, part)| stack.push(part));
        }
        let mut results = operands[..parts.states].to_vec();
        for (i, mut stacked) in stacks.into_iter().enumerate() {
            if Scan::is_backward(&self.scan_output_directions, i) {
                stacked.reverse();
            }
            let like = &outs[parts.states + i];
            results.push(stack(&stacked, self.stacked_axis(i, like.rank()), like)?);
        }
        Ok(results)
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let types: Vec<TensorType> = cx.ins.iter().map(|&v| cx.builder.ty(v).clone()).collect();
        let types: Vec<&TensorType> = types.iter().collect();
        let parts = self.parts(&types).expect("infer accepted the operands");
        let length = types[parts.scanned.start].shape()[parts.axes[0]];
        if length == 0 {
            // The states are the results.
            let gradients =
                (0..cx.ins.len()).map(|i| cx.douts.get(i).copied().flatten().filter(|_| i < parts.states));
            return Ok(Vjp::Gradients(gradients.collect()));
        }
        let stacked = (parts.states..cx.outs.len())
            .map(|i| self.stacked_axis(i - parts.states, cx.shape(cx.outs[i]).len() - 1))
            .collect();
        let (states, scanned, axes) = (parts.states, parts.scanned.clone(), &parts.axes[..]);
        let body = self.body_at(&parts, &types)?;
        Scanned { scan: self, body, states, scanned, axes, length, stacked }.vjp(cx)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let types = cx.types();
        let parts = self.parts(&types.iter().collect::<Vec<_>>()).expect("infer accepted the operands");
        let stacked = cx.outs[parts.states..].iter().enumerate();
        let stacked = stacked.map(|(i, ty)| self.stacked_axis(i, ty.rank() - 1)).collect();
        let (states, scanned) = (parts.states, parts.scanned.clone());
        BatchedScan { scan: self, states, scanned, axes: &parts.axes, stacked }.vmap(cx)
    }

    fn lower(&self, ins: &[TensorType], _: &[TensorType]) -> Result<Lowered, Error> {
        let types: Vec<&TensorType> = ins.iter().collect();
        let parts = self.parts(&types).expect("infer accepted the operands");
        let length =
            Scan::length(&parts, &types).expect("infer accepted the lengths").as_fixed().unwrap_or(0);
        self.lowered(ins, &parts, length)
    }

    fn is_pure(&self) -> bool {
        is_pure(&self.body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::graph::Builder;
    use crate::ops::testing::{check, sample};
    use crate::scalar::ScalarFn;

    /// Running sums, and their product with a captured factor.
    fn sums() -> Scan {
        let mut b = Builder::new("body");
        let ty = |_: &str| TensorType::new(DType::F32, [Dim::Unknown]);
        let (sum, x, factor) = (b.input("sum", ty("")), b.input("x", ty("")), b.input("factor", ty("")));
        let next = b.map(ScalarFn::Add, &[sum, x]).unwrap();
        let scaled = b.map(ScalarFn::Mul, &[next, factor]).unwrap();
        b.output("next", next);
        b.output("scaled", scaled);
        Scan { body: Arc::new(b.finish().unwrap()), num_captures: 1, ..Scan::with_name("scan") }
    }

    #[test]
    fn sums_run_along_the_axis() {
        let ins = [
            Tensor::new(&[2], &[0f32, 0.]),
            Tensor::new(&[3, 2], &[1f32, 2., 3., 4., 5., 6.]),
            Tensor::new(&[1], &[10f32]),
        ];
        let y = check(sums(), &ins);
        assert_eq!(y[0].to_f64s(), [9., 12.]);
        assert_eq!(y[1].to_f64s(), [10., 20., 40., 60., 90., 120.]);
        let backward = Scan {
            scan_input_directions: vec![1],
            scan_output_directions: vec![1],
            scan_output_axes: vec![-1],
            ..sums()
        };
        assert_eq!(check(backward, &ins)[1].to_f64s(), [90., 80., 50., 120., 100., 60.]);
    }

    #[test]
    fn long_and_empty_scans() {
        for length in [0, 1, 100] {
            let scan = Scan { scan_input_axes: vec![1], ..sums() };
            let ins = [
                sample(DType::F32, &[2], 1),
                sample(DType::F32, &[2, length], 2),
                sample(DType::F32, &[2], 3),
            ];
            assert_eq!(check(scan, &ins)[1].shape(), [length, 2]);
        }
    }

    #[test]
    fn constraints_are_named() {
        let f32 = |shape: &[usize]| TensorType::fixed(DType::F32, shape);
        let violated =
            |op: Scan, ins: &[TensorType]| op.infer(&ins.iter().collect::<Vec<_>>()).unwrap_err().constraint;
        let ins = [f32(&[2]), f32(&[3, 2]), f32(&[2])];
        assert_eq!(violated(Scan { num_captures: 3, ..sums() }, &ins), "C1");
        assert_eq!(violated(Scan { scan_input_axes: vec![2], ..sums() }, &ins), "C2");
        assert_eq!(violated(sums(), &[f32(&[2]), f32(&[3, 4]), f32(&[2])]), "C3");
        assert_eq!(violated(Scan { scan_output_axes: vec![0, 0], ..sums() }, &ins), "C4");
    }
}
