//! `recognize_composites`: finds what exporters decomposed, by formulas ([`crate::composites`]).
//!
//! Matching starts at the nodes nearest to the outputs, so that the largest form is found first, and
//! nodes inside a match are not tried again. Inner values that others read block a match, because
//! computing them twice may cost more than the composite saves.

use std::sync::LazyLock;

use cranelift_entity::SecondaryMap;
use windlass_ir::graph::Values;
use windlass_ir::{Graph, Node, TensorType, Value};

use crate::composites::{COMPOSITES, Composite, Operand, Plan};
use crate::cx::PassCx;
use crate::error::Error;
use crate::manager::Pass;
use crate::pattern::{Formula, Match, Matcher};
use crate::reason::Reason;
use crate::rewrite::{rewrite, stands_for};

/// The pass.
pub const PASS: Pass = Pass {
    name: "recognize_composites",
    help: "recognize layer, RMS and group norm, GELU, SiLU, softmax and attention in smaller ops",
    run,
};

/// The formulas of each composite, and the ops that their roots may be.
static FORMULAS: LazyLock<Vec<(&Composite, Vec<(Formula, Vec<String>)>)>> = LazyLock::new(|| {
    let parsed = |text: &&str| {
        let formula = Formula::new(text);
        let roots = formula.roots().into_iter().map(str::to_string).collect();
        (formula, roots)
    };
    COMPOSITES.iter().map(|&c| (c, c.formulas.iter().map(parsed).collect())).collect()
});

fn run(graph: &Graph, cx: &mut PassCx) -> Result<Option<Graph>, Error> {
    let matcher = Matcher::new(graph);
    let mut plans: SecondaryMap<Node, Option<(&'static str, Plan, Vec<Value>)>> = SecondaryMap::new();
    let mut claimed: SecondaryMap<Node, bool> = SecondaryMap::with_capacity(graph.node_count());
    let mut any = false;
    for (node, data) in graph.nodes().rev() {
        if claimed[node] || data.outs.len() != 1 {
            continue;
        }
        for (composite, formulas) in FORMULAS.iter() {
            let (found, plan) = match attempt(&matcher, node, composite, formulas) {
                Ok(found) => found,
                Err(reason) => {
                    if let Some(reason) = reason {
                        cx.blocked(composite.name, || graph.describe(node), || reason);
                    }
                    continue;
                }
            };
            found.nodes.iter().for_each(|&n| claimed[n] = true);
            let named = plan.ins.iter().map(|operand| match operand {
                Operand::Named(name) | Operand::Applied(_, name) => found.value(name),
            });
            let named: Vec<Value> = named.collect();
            plans[node] = Some((composite.name, plan, named));
            any = true;
            break;
        }
    }
    if !any {
        return Ok(None);
    }
    rewrite(graph, cx, |edit, node, cx| {
        let Some((rule, plan, named)) = &plans[node] else { return Ok(None) };
        if !cx.fire(rule, || graph.describe(node)) {
            return Ok(None);
        }
        let mut ins = Values::new();
        for (operand, &value) in plan.ins.iter().zip(named) {
            let value = edit.map(value);
            ins.push(match operand {
                Operand::Named(_) => value,
                Operand::Applied(op, _) => edit.builder().push1(op.clone(), &[value])?,
            });
        }
        Ok(Some(edit.builder().push(plan.op.clone(), &ins, graph.node(node).name.clone())?))
    })
}

/// The first formula of a composite that matches and can be put in place, or why none does.
fn attempt<'f>(
    matcher: &Matcher<'_>,
    node: Node,
    composite: &Composite,
    formulas: &'f [(Formula, Vec<String>)],
) -> Result<(Match<'f>, Plan), Option<Reason>> {
    let graph = matcher.graph();
    let op = graph.node(node).op.name();
    let mut first_reason = None;
    for (formula, _) in formulas.iter().filter(|(_, roots)| roots.iter().any(|root| root == op)) {
        let tried = matcher.find(formula, node).and_then(|found| {
            let plan = (composite.plan)(graph, &found).map_err(Some)?;
            fits(graph, node, &found, &plan).map_err(Some)?;
            Ok((found, plan))
        });
        match tried {
            Ok(found) => return Ok(found),
            Err(reason) => first_reason = first_reason.or(reason),
        }
    }
    Err(first_reason)
}

/// Whether the plan's op takes its operands and gives the type of the node it replaces.
fn fits(graph: &Graph, node: Node, found: &Match<'_>, plan: &Plan) -> Result<(), Reason> {
    let mismatch = Reason::Unsound("the operands are not ones the composite takes");
    let mut types: Vec<TensorType> = Vec::new();
    for operand in &plan.ins {
        types.push(match operand {
            Operand::Named(name) => graph.ty(found.value(name)).clone(),
            Operand::Applied(op, name) => {
                let outs = op.infer(&[graph.ty(found.value(name))]).map_err(|_| mismatch.clone())?;
                outs.into_iter().next().ok_or_else(|| mismatch.clone())?
            }
        });
    }
    let expected = graph.ty(graph.node(node).outs[0]);
    match plan.op.infer(&types.iter().collect::<Vec<_>>()) {
        Ok(outs) if outs.len() == 1 && stands_for(&outs[0], expected) => Ok(()),
        Ok(_) => Err(Reason::Type { what: "the result", found: expected.clone() }),
        Err(_) => Err(mismatch),
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;
    use windlass_ir::ops::{GroupNorm, Reduce, ReduceKind};
    use windlass_ir::{Builder, Error, ScalarFn, Tensor};

    use super::*;
    use crate::testing::{after, blocked, graph, ops, weights};

    const CLEAN: [&str; 3] = ["simplify", "cse", "recognize_composites"];

    fn reduce(b: &mut Builder, kind: ReduceKind, x: Value) -> Result<Value, Error> {
        b.push1(Reduce::over(kind, &[-1], true), &[x])
    }

    /// LayerNorm as PyTorch exports it.
    fn layer_norm(b: &mut Builder, x: Value, read_deviation: bool) -> Result<Values, Error> {
        let mean = reduce(b, ReduceKind::Mean, x)?;
        let d = b.map(ScalarFn::Sub, &[x, mean])?;
        let two = b.scalar_like(x, 2.0);
        let square = b.map(ScalarFn::Pow, &[d, two])?;
        let variance = reduce(b, ReduceKind::Mean, square)?;
        let epsilon = b.scalar_like(x, 1e-5);
        let shifted = b.map(ScalarFn::Add, &[variance, epsilon])?;
        let deviation = b.map(ScalarFn::Sqrt, &[shifted])?;
        let y = b.map(ScalarFn::Div, &[d, deviation])?;
        let (scale, bias) = (weights(b, &[8], 1), weights(b, &[8], 2));
        let y = b.map(ScalarFn::Mul, &[y, scale])?;
        let y = b.map(ScalarFn::Add, &[y, bias])?;
        Ok(if read_deviation { smallvec![y, deviation] } else { smallvec![y] })
    }

    #[test]
    fn layer_norm_of_pytorch() {
        let g = graph(&[&[3, 8]], |b, x| layer_norm(b, x[0], false));
        let (g, records) = after(&g, &CLEAN);
        assert_eq!(ops(&g), "layer_norm 1");
        assert_eq!(records.iter().filter(|r| r.rule == "layer_norm").count(), 1);
    }

    #[test]
    fn an_inner_value_read_by_others_blocks() {
        let g = graph(&[&[3, 8]], |b, x| layer_norm(b, x[0], true));
        let (_, records) = after(&g, &CLEAN);
        let reason = blocked(&records, "layer_norm");
        assert!(matches!(reason, Some(Reason::OtherReaders { readers: 2, .. })), "{records:?}");
    }

    #[test]
    fn gelu_forms() {
        for tanh in [false, true] {
            let g = graph(&[&[3, 8]], |b, x| {
                let x = x[0];
                let (half, one) = (b.scalar_like(x, 0.5), b.scalar_like(x, 1.0));
                let inner = if tanh {
                    let (three, cubic) = (b.scalar_like(x, 3.0), b.scalar_like(x, 0.044715));
                    let scale = b.scalar_like(x, (2.0 / std::f64::consts::PI).sqrt());
                    let y = b.map(ScalarFn::Pow, &[x, three])?;
                    let y = b.map(ScalarFn::Mul, &[y, cubic])?;
                    let y = b.map(ScalarFn::Add, &[y, x])?;
                    let y = b.map(ScalarFn::Mul, &[scale, y])?;
                    b.map(ScalarFn::Tanh, &[y])?
                } else {
                    let root = b.scalar_like(x, std::f64::consts::SQRT_2);
                    let y = b.map(ScalarFn::Div, &[x, root])?;
                    b.map(ScalarFn::Erf, &[y])?
                };
                let gate = b.map(ScalarFn::Add, &[inner, one])?;
                let y = b.map(ScalarFn::Mul, &[x, gate])?;
                Ok(smallvec![b.map(ScalarFn::Mul, &[half, y])?])
            });
            assert_eq!(ops(&after(&g, &CLEAN).0), "gelu 1");
        }
    }

    #[test]
    fn a_wrong_constant_is_named() {
        let g = graph(&[&[3, 8]], |b, x| {
            let (root, one, half) =
                (b.scalar_like(x[0], 1.4), b.scalar_like(x[0], 1.0), b.scalar_like(x[0], 0.5));
            let y = b.map(ScalarFn::Div, &[x[0], root])?;
            let y = b.map(ScalarFn::Erf, &[y])?;
            let y = b.map(ScalarFn::Add, &[y, one])?;
            let y = b.map(ScalarFn::Mul, &[x[0], y])?;
            Ok(smallvec![b.map(ScalarFn::Mul, &[y, half])?])
        });
        let (_, records) = after(&g, &CLEAN);
        let reason = blocked(&records, "gelu").unwrap().to_string();
        assert_eq!(reason, "expected the constant 1.4142135623730951 at constant node0");
    }

    #[test]
    fn attention_with_mask_and_scale() {
        let g = graph(&[&[2, 3, 4, 8], &[2, 3, 8, 5], &[2, 3, 5, 6], &[2, 1, 1, 5]], |b, x| {
            let p = b.push1(windlass_ir::ops::MatMul::default(), &[x[0], x[1]])?;
            let divisor = b.scalar_like(p, 3.0);
            let s = b.map(ScalarFn::Div, &[p, divisor])?;
            let s = b.map(ScalarFn::Add, &[s, x[3]])?;
            let w = b.push1(windlass_ir::ops::Softmax { log: false, axis: -1, masked: false }, &[s])?;
            Ok(smallvec![b.push1(windlass_ir::ops::MatMul::default(), &[w, x[2]])?])
        });
        assert_eq!(ops(&after(&g, &CLEAN).0), "attention 1, transpose 1");
    }

    #[test]
    fn group_norm_as_an_instance_norm_of_groups() {
        let written = |b: &mut Builder, x: Value, groups: usize| -> Result<Values, Error> {
            let shape = b.ty(x).shape();
            let rest = shape.iter().product::<usize>() / (shape[0] * groups);
            let grouped = b.reshape(x, &[shape[0], groups, rest])?;
            let [one, zero] =
                [1.0, 0.0].map(|value| b.constant(Tensor::new(&[groups], &vec![value as f32; groups])));
            let norm = GroupNorm { instance: true, num_groups: 1, epsilon: 1e-5, channels_last: false };
            let unit = b.push1(norm, &[grouped, one, zero])?;
            let unit = b.reshape(unit, &shape)?;
            let [scale, bias] = [1, 2].map(|seed| weights(b, &[6, 1, 1], seed));
            let y = b.map(ScalarFn::Mul, &[unit, scale])?;
            Ok(smallvec![b.map(ScalarFn::Add, &[y, bias])?])
        };
        let g = graph(&[&[2, 6, 4, 5]], |b, x| written(b, x[0], 3));
        assert_eq!(ops(&after(&g, &CLEAN).0), "group_norm 1, reshape 2");
        // Channels that are the third dimension are not the groups'.
        let g = graph(&[&[2, 3, 6, 4, 5]], |b, x| written(b, x[0], 3));
        let (_, records) = after(&g, &CLEAN);
        assert!(matches!(blocked(&records, "group_norm"), Some(Reason::Unsound(_))), "{records:?}");
    }

    #[test]
    fn softmax_silu_and_rms_norm() {
        let g = graph(&[&[3, 8]], |b, x| {
            let m = reduce(b, ReduceKind::Max, x[0])?;
            let d = b.map(ScalarFn::Sub, &[x[0], m])?;
            let e = b.map(ScalarFn::Exp, &[d])?;
            let s = reduce(b, ReduceKind::Sum, e)?;
            let y = b.map(ScalarFn::Div, &[e, s])?;
            let alpha = b.scalar_like(y, 1.702);
            let gate = b.map(ScalarFn::Mul, &[y, alpha])?;
            let gate = b.map(ScalarFn::Sigmoid, &[gate])?;
            let y = b.map(ScalarFn::Mul, &[gate, y])?;
            let (epsilon, one) = (b.scalar_like(y, 1e-6), b.scalar_like(y, 1.0));
            let square = b.map(ScalarFn::Mul, &[y, y])?;
            let mean = reduce(b, ReduceKind::Mean, square)?;
            let shifted = b.map(ScalarFn::Add, &[mean, epsilon])?;
            let root = b.map(ScalarFn::Sqrt, &[shifted])?;
            let inverse = b.map(ScalarFn::Div, &[one, root])?;
            let y = b.map(ScalarFn::Mul, &[y, inverse])?;
            let scale = weights(b, &[8], 5);
            Ok(smallvec![b.map(ScalarFn::Mul, &[scale, y])?])
        });
        assert_eq!(ops(&after(&g, &CLEAN).0), "rms_norm 1, silu 1, softmax 1");
    }
}
