//! `sink_transposes`: moves transposes towards the outputs until they cancel.
//!
//! A transpose is not computed where it stands; its result is remembered as its operand in another
//! order, ops that can do so compute on operands in that order ([`crate::absorb`]), and only where one
//! cannot is the order restored. Whether that pays is decided for each *region*, the values that such
//! ops connect: the bytes that transposes move must become fewer. So no model gets slower.

use std::collections::{BTreeMap, BTreeSet};

use cranelift_entity::{EntityRef, SecondaryMap};
use petgraph::unionfind::UnionFind;
use windlass_ir::graph::{Def, Values};
use windlass_ir::ops::{Reshape, Transpose};
use windlass_ir::{Edit, Graph, Node, Op, Value};

use crate::absorb::{Absorbed, Layouts, absorb};
use crate::cx::PassCx;
use crate::error::Error;
use crate::known::Known;
use crate::manager::Pass;
use crate::permutation::Permutation;
use crate::reason::Reason;
use crate::stats::bytes;

/// The pass.
pub const PASS: Pass =
    Pass { name: "sink_transposes", help: "move transposes until they meet and cancel", run };

const RULE: &str = "region";

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    if !graph.nodes().any(|(_, data)| matches!(*data.op, Op::Transpose(_))) {
        return Ok(None);
    }
    let known = Known::of(graph);
    let all = Analysis::new(graph, &known, |_| true);
    // Regions worth it, by representative. Each is announced by its first transpose.
    let mut accepted: BTreeMap<usize, bool> = BTreeMap::new();
    for (node, data) in graph.nodes() {
        if !matches!(*data.op, Op::Transpose(_)) {
            continue;
        }
        let region = all.region(data.outs[0]);
        if accepted.contains_key(&region) {
            continue;
        }
        let (before, after) = all.costs.get(&region).copied().unwrap_or_default();
        let pays = after < before;
        if !pays && all.absorbing.contains(&region) {
            cx.blocked(RULE, || graph.describe(node), || Reason::NoGain { before, after });
        }
        accepted.insert(region, pays && cx.fire(RULE, || graph.describe(node)));
    }
    if !accepted.values().any(|&yes| yes) {
        return Ok(None);
    }
    let in_accepted = |value: Value| accepted.get(&all.region(value)).copied().unwrap_or(false);
    let plan = Analysis::new(graph, &known, |node| in_accepted(graph.node(node).outs[0]));
    build(graph, &plan, in_accepted).map(Some)
}

/// Where a value comes from: a value that is at hand, and the layout over it.
#[derive(Clone, Debug)]
struct Place {
    root: Value,
    layout: Permutation,
}

/// The layouts that values would have, and what that would cost.
struct Analysis<'g> {
    graph: &'g Graph,
    known: &'g Known,
    places: SecondaryMap<Value, Option<Place>>,
    absorbed: SecondaryMap<Node, Option<Absorbed>>,
    regions: UnionFind<usize>,
    /// Transposes already made: of this root into this order.
    made: BTreeSet<(Value, Permutation)>,
    /// Bytes moved by transposes before and after, by region.
    costs: BTreeMap<usize, (u64, u64)>,
    /// Regions in which an op absorbs a layout.
    absorbing: BTreeSet<usize>,
}

impl<'g> Analysis<'g> {
    fn new(graph: &'g Graph, known: &'g Known, enabled: impl Fn(Node) -> bool) -> Analysis<'g> {
        let mut analysis = Analysis {
            graph,
            known,
            places: SecondaryMap::with_capacity(graph.value_count()),
            absorbed: SecondaryMap::with_capacity(graph.node_count()),
            regions: UnionFind::new(graph.value_count()),
            made: BTreeSet::new(),
            costs: BTreeMap::new(),
            absorbing: BTreeSet::new(),
        };
        // Charges are collected first, as regions grow while nodes are visited.
        let mut charges: Vec<(Value, u64, u64)> = Vec::new();
        let mut absorbing: Vec<Value> = Vec::new();
        for (node, data) in graph.nodes() {
            if let Op::Transpose(op) = &*data.op {
                let (source, out) = (data.ins[0], data.outs[0]);
                let own: Permutation = op.perm(graph.ty(source).rank()).into_iter().collect();
                let place = analysis.place(source);
                analysis.regions.union(place.root.index(), out.index());
                charges.push((out, analysis.transpose_cost(source, &own), 0));
                let layout = place.layout.then(&own);
                analysis.places[out] = Some(Place { root: place.root, layout });
                continue;
            }
            let found = if enabled(node) { absorb(graph, node, &analysis) } else { None };
            match found {
                Some(absorbed) => {
                    let out = data.outs[0];
                    for (&value, need) in data.ins.iter().zip(&absorbed.ins) {
                        let Some(need) = need else { continue };
                        let place = analysis.place(value);
                        if !place.layout.is_identity() {
                            analysis.regions.union(place.root.index(), out.index());
                        }
                        charges.push((out, 0, analysis.charge(value, need)));
                    }
                    absorbing.push(out);
                    let layout = absorbed.result.clone();
                    analysis.places[out] = Some(Place { root: out, layout });
                    analysis.absorbed[node] = Some(absorbed);
                }
                None => {
                    for &value in &data.ins {
                        let plain = Permutation::identity(graph.ty(value).rank());
                        charges.push((value, 0, analysis.charge(value, &plain)));
                    }
                }
            }
        }
        for &(_, value) in graph.outputs() {
            let plain = Permutation::identity(graph.ty(value).rank());
            charges.push((value, 0, analysis.charge(value, &plain)));
        }
        for (value, before, after) in charges {
            let entry = analysis.costs.entry(analysis.regions.find(value.index())).or_default();
            *entry = (entry.0 + before, entry.1 + after);
        }
        analysis.absorbing = absorbing.iter().map(|v| analysis.regions.find(v.index())).collect();
        analysis
    }

    fn region(&self, value: Value) -> usize {
        self.regions.find(value.index())
    }

    fn place(&self, value: Value) -> Place {
        self.places[value].clone().unwrap_or_else(|| Place {
            root: value,
            layout: Permutation::identity(self.graph.ty(value).rank()),
        })
    }

    /// The bytes moved by transposing a value.
    fn transpose_cost(&self, value: Value, perm: &Permutation) -> u64 {
        let dims = &self.graph.ty(value).dims;
        let free = self.known.contains(value) || perm.moves_nothing(dims);
        if free { 0 } else { bytes(self.graph, value) }
    }

    /// The order in which `value`'s root must be transposed to give `value` the layout `to`; `None` if
    /// none of its elements move.
    fn change(&self, value: Value, to: &Permutation) -> Option<(Value, Permutation)> {
        let place = self.place(value);
        if place.layout == *to {
            return None;
        }
        let dims = &self.graph.ty(value).dims;
        if place.layout.rank() < to.rank() {
            // Dimensions of 1 are put before it.
            let missing = to.rank() - dims.len();
            let mut padded = vec![windlass_ir::Dim::Fixed(1); missing];
            padded.extend(dims.iter().cloned());
            let moves = !to.inverse().moves_nothing(&padded) || !place.layout.is_identity();
            return (moves && !self.known.contains(value)).then(|| (value, to.inverse()));
        }
        let perm = place.layout.then(&to.inverse());
        // The dimensions of the base: dimension d of the value is its dimension layout[d].
        let inverse = place.layout.inverse();
        let base: Vec<_> = inverse.as_slice().iter().map(|&d| dims[d].clone()).collect();
        let free = perm.moves_nothing(&base) || self.known.contains(place.root);
        (!free).then_some((place.root, perm))
    }

    /// The bytes of a change of layout, which is made once.
    fn charge(&mut self, value: Value, to: &Permutation) -> u64 {
        let is_new = self.change(value, to).is_some_and(|change| self.made.insert(change));
        if is_new { bytes(self.graph, value) } else { 0 }
    }
}

impl Layouts for Analysis<'_> {
    fn layout(&self, value: Value) -> Permutation {
        self.place(value).layout
    }

    fn cost(&self, value: Value, to: &Permutation) -> u64 {
        match self.change(value, to) {
            Some(change) if !self.made.contains(&change) => bytes(self.graph, value),
            _ => 0,
        }
    }
}

/// Builds the graph in which the plan's nodes compute on bases.
fn build(graph: &Graph, plan: &Analysis<'_>, in_accepted: impl Fn(Value) -> bool) -> Result<Graph, Error> {
    let mut builder =
        Rebuild { edit: Edit::new(graph), bases: SecondaryMap::new(), changed: BTreeMap::new() };
    for (node, data) in graph.nodes() {
        builder.edit.set_name(data.name.clone());
        if let Op::Transpose(op) = &*data.op
            && in_accepted(data.outs[0])
        {
            let own: Permutation = op.perm(graph.ty(data.ins[0]).rank()).into_iter().collect();
            let (base, layout) = builder.base(data.ins[0]);
            builder.bases[data.outs[0]] = Some((base, layout.then(&own)));
        } else if let Some(absorbed) = &plan.absorbed[node] {
            let mut ins = Values::new();
            for (&value, need) in data.ins.iter().zip(&absorbed.ins) {
                ins.push(match need {
                    Some(need) => builder.with_layout(value, need)?,
                    None => builder.plain(value)?,
                });
            }
            let base = builder.edit.builder().push1(absorbed.op.clone(), &ins)?;
            builder.bases[data.outs[0]] = Some((base, absorbed.result.clone()));
        } else {
            for &value in &data.ins {
                builder.plain(value)?;
            }
            builder.edit.copy(node)?;
        }
    }
    for &(_, value) in graph.outputs() {
        builder.plain(value)?;
    }
    Ok(builder.edit.finish()?)
}

/// The graph being built.
struct Rebuild<'g> {
    edit: Edit<'g>,
    /// For old values that are not carried over as they are: a base in the new graph and its layout.
    bases: SecondaryMap<Value, Option<(Value, Permutation)>>,
    /// Transposes made so far, by operand and order.
    changed: BTreeMap<(Value, Permutation), Value>,
}

impl Rebuild<'_> {
    fn base(&self, old: Value) -> (Value, Permutation) {
        match &self.bases[old] {
            Some(base) => base.clone(),
            None => (self.edit.map(old), Permutation::identity(self.edit.old().ty(old).rank())),
        }
    }

    /// An old value itself, in the new graph.
    fn plain(&mut self, old: Value) -> Result<Value, Error> {
        if let Some((base, layout)) = self.bases[old].clone() {
            let value = self.transposed(base, &layout)?;
            let Def::Output { node, .. } = self.edit.old().def(old) else {
                unreachable!("only results of nodes have bases")
            };
            self.edit.replace(node, &[value])?;
            return Ok(value);
        }
        Ok(self.edit.map(old))
    }

    /// The base of an old value in this layout.
    fn with_layout(&mut self, old: Value, to: &Permutation) -> Result<Value, Error> {
        let rank = self.edit.old().ty(old).rank();
        if rank < to.rank() {
            let value = self.plain(old)?;
            let mut padded = vec![1; to.rank() - rank];
            padded.extend(self.edit.graph().ty(value).shape());
            let padded = self.reshaped(value, &padded)?;
            return self.transposed(padded, &to.inverse());
        }
        let (base, layout) = self.base(old);
        self.transposed(base, &layout.then(&to.inverse()))
    }

    fn reshaped(&mut self, value: Value, shape: &[usize]) -> Result<Value, Error> {
        let b = self.edit.builder();
        if let Some(constant) = b.graph().as_constant(value) {
            let reshaped = constant.reshaped(shape);
            return Ok(b.constant(reshaped));
        }
        Ok(b.push1(Reshape::to(shape), &[value])?)
    }

    fn transposed(&mut self, value: Value, perm: &Permutation) -> Result<Value, Error> {
        if perm.is_identity() {
            return Ok(value);
        }
        if let Some(&made) = self.changed.get(&(value, perm.clone())) {
            return Ok(made);
        }
        let op = Transpose::by(perm.as_slice());
        let b = self.edit.builder();
        let ty = b.ty(value).clone();
        let made = if let (true, Some(shape)) = (perm.moves_nothing(&ty.dims), ty.as_shape()) {
            let shape: Vec<usize> = perm.as_slice().iter().map(|&d| shape[d]).collect();
            self.reshaped(value, &shape)?
        } else {
            b.push1(op, &[value])?
        };
        self.changed.insert((value, perm.clone()), made);
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::ops::{DequantizeLinear, MatMul, QuantizeLinear, Reduce, ReduceKind};
    use windlass_ir::{Builder, DType, ScalarFn, Tensor};

    use super::*;
    use crate::testing::{after, blocked, graph, ops, weights};

    const TO_LAST: [usize; 4] = [0, 2, 3, 1];
    const TO_FIRST: [usize; 4] = [0, 3, 1, 2];

    fn transpose(b: &mut Builder, x: Value, perm: &[usize]) -> Value {
        b.push1(Transpose::by(perm), &[x]).unwrap()
    }

    #[test]
    fn pairs_cancel_through_elementwise_reduce_and_residual() {
        let g = graph(&[&[2, 3, 4, 5]], |b, x| {
            let x = transpose(b, x[0], &TO_FIRST);
            let y = b.map(ScalarFn::Exp, &[x])?;
            let bias = weights(b, &[5, 1, 1], 7);
            let y = b.map(ScalarFn::Mul, &[bias, y])?;
            let y = b.map(ScalarFn::Add, &[x, y])?;
            let m = b.push1(Reduce::over(ReduceKind::Mean, &[2, 3], true), &[y])?;
            let y = b.map(ScalarFn::Sub, &[y, m])?;
            Ok(smallvec![transpose(b, y, &TO_LAST)])
        });
        let (g, _) = after(&g, &["sink_transposes"]);
        assert_eq!(ops(&g), "add 1, exp 1, mul 1, reduce_mean 1, sub 1");
    }

    #[test]
    fn pairs_cancel_through_quantization_by_tensor_and_by_channel() {
        let scales = [Tensor::scalar(0.1f32), Tensor::new(&[5], &[0.1f32, 0.2, 0.3, 0.4, 0.5])];
        for scale in scales {
            let g = graph(&[&[2, 3, 4, 5]], |b, x| {
                let x = transpose(b, x[0], &TO_FIRST);
                let scale = b.constant(scale.clone());
                let (axis, block_size) = (1, 0);
                let q = b.push1(QuantizeLinear { axis, block_size, to: DType::U8 }, &[x, scale])?;
                let y = b.push1(DequantizeLinear { axis, block_size, to: DType::F32 }, &[q, scale])?;
                Ok(smallvec![transpose(b, y, &TO_LAST)])
            });
            let (g, _) = after(&g, &["sink_transposes"]);
            assert_eq!(ops(&g), "dequantize_linear 1, quantize_linear 1");
        }
    }

    #[test]
    fn a_transpose_alone_stays() {
        let g = graph(&[&[2, 3, 4, 5]], |b, x| {
            let x = transpose(b, x[0], &TO_FIRST);
            Ok(smallvec![b.map(ScalarFn::Exp, &[x])?])
        });
        let (g, records) = after(&g, &["sink_transposes"]);
        assert_eq!(ops(&g), "exp 1, transpose 1");
        assert_eq!(blocked(&records, RULE), Some(&Reason::NoGain { before: 480, after: 480 }));
    }

    #[test]
    fn two_readers_that_cannot_absorb_block() {
        // exp's result would be transposed as well as its operand.
        let g = graph(&[&[6, 5]], |b, x| {
            let t = transpose(b, x[0], &[1, 0]);
            let y = b.map(ScalarFn::Exp, &[t])?;
            Ok(smallvec![t, y])
        });
        let (_, records) = after(&g, &["sink_transposes"]);
        assert_eq!(blocked(&records, RULE), Some(&Reason::NoGain { before: 120, after: 240 }));
    }

    #[test]
    fn a_dropped_axis_lets_the_rest_follow() {
        let g = graph(&[&[2, 3, 4, 5]], |b, x| {
            let x = transpose(b, x[0], &TO_FIRST);
            let y = b.push1(Reduce::over(ReduceKind::Max, &[-2], false), &[x])?;
            Ok(smallvec![transpose(b, y, &[0, 2, 1])])
        });
        assert_eq!(ops(&after(&g, &["sink_transposes"]).0), "reduce_max 1");
    }

    #[test]
    fn reshapes_split_and_merge_around() {
        let g = graph(&[&[2, 3, 4, 6]], |b, x| {
            let x = transpose(b, x[0], &TO_FIRST);
            let y = b.push1(Reshape::to(&[2, 2, 3, 12]), &[x])?;
            let y = b.map(ScalarFn::Exp, &[y])?;
            let y = b.push1(Reshape::to(&[2, 6, 3, 4]), &[y])?;
            Ok(smallvec![transpose(b, y, &TO_LAST)])
        });
        assert_eq!(ops(&after(&g, &["sink_transposes"]).0), "exp 1, reshape 2");
    }

    #[test]
    fn matmul_takes_a_swap_as_its_flag() {
        let g = graph(&[&[2, 4, 3], &[2, 5, 4]], |b, x| {
            let y = transpose(b, x[0], &[0, 2, 1]);
            let z = transpose(b, x[1], &[0, 2, 1]);
            let e = b.map(ScalarFn::Exp, &[z])?;
            Ok(smallvec![b.push1(MatMul::default(), &[y, e])?])
        });
        assert_eq!(ops(&after(&g, &["sink_transposes"]).0), "exp 1, matmul 1");
    }

    #[test]
    fn moving_only_ones_is_a_reshape() {
        let g = graph(&[&[2, 1, 1, 5], &[2, 5, 1, 1]], |b, x| {
            let y = transpose(b, x[0], &TO_FIRST);
            let z = b.map(ScalarFn::Add, &[y, x[1]])?;
            let z = b.push1(MatMul::default(), &[z, z])?;
            Ok(smallvec![transpose(b, z, &TO_LAST)])
        });
        // Nothing moves, so there is nothing to gain.
        let (g, _) = after(&g, &["sink_transposes"]);
        assert_eq!(ops(&g), "add 1, matmul 1, transpose 2");
    }
}
