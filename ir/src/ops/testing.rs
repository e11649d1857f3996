//! Holds an op's `lower` against its `eval`: nests are evaluated point by point, straight from the formula.

use std::collections::HashMap;

use super::{Lowered, Op, OpDef as _};
use crate::dtype::{DType, Element};
use crate::graph::Graph;
use crate::interpret::eval_op;
use crate::loops::{Expr, Guard, Index, Nest, Reduction, Val, Var};
use crate::scalar::{self, Operand};
use crate::tensor::Tensor;
use crate::types::{TensorType, strides};
use crate::with_element;

/// The op's results by `eval`, after checking their types and that `lower` gives the same.
pub(crate) fn check(op: impl Into<Op>, ins: &[Tensor]) -> Vec<Tensor> {
    let op = op.into();
    let expected = eval_op(&op, ins).expect("the op evaluates");
    let types: Vec<TensorType> = ins.iter().map(Tensor::ty).collect();
    let outs = op.infer(&types.iter().collect::<Vec<_>>()).expect("the operands fit");
    for (tensor, ty) in expected.iter().zip(&outs) {
        assert!(
            tensor.dtype() == ty.dtype
                && tensor.rank() == ty.rank()
                && tensor.ty().dims.iter().zip(&ty.dims).all(|(a, b)| a.may_equal(b)),
            "{op:?} gives {}, infers {ty}",
            tensor.ty()
        );
    }
    let actual: Vec<TensorType> = expected.iter().map(Tensor::ty).collect();
    assert_close(&run_lowered(&op, ins, &actual), &expected, &format!("{op:?}"));
    expected
}

/// The results within a few units of f16, f32 or f64; integers exactly.
pub(crate) fn assert_close(found: &[Tensor], expected: &[Tensor], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (a, b) in found.iter().zip(expected) {
        assert_eq!(a.ty(), b.ty(), "{what}");
        let tolerance = match a.dtype() {
            DType::F16 => 2e-3,
            DType::BF16 => 2e-2,
            DType::F32 => 1e-5,
            DType::F64 => 1e-12,
            _ => 0.0,
        };
        for (i, (x, y)) in a.to_f64s().into_iter().zip(b.to_f64s()).enumerate() {
            let close = x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= tolerance * y.abs().max(1.0);
            assert!(close, "{what}: element {i} is {x}, expected {y}");
        }
    }
}

/// An f32 tensor of values that look random, the same every time.
pub(crate) fn sample(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let values: Vec<f64> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 40) as f64 / (1u64 << 24) as f64;
            if dtype.is_float() { unit * 4.0 - 2.0 } else { (unit * 20.0).floor() - 5.0 }
        })
        .collect();
    match dtype.is_unsigned_int() {
        true => Tensor::from_f64s(dtype, shape, &values.iter().map(|v| v.abs()).collect::<Vec<_>>()),
        false => Tensor::from_f64s(dtype, shape, &values),
    }
}

fn run_lowered(op: &Op, ins: &[Tensor], outs: &[TensorType]) -> Vec<Tensor> {
    let types: Vec<TensorType> = ins.iter().map(Tensor::ty).collect();
    match op.lower(&types, outs).expect("the op lowers") {
        Lowered::Nest(nest) => run_nest(&nest, ins),
        Lowered::Graph(graph) => run_graph(&graph, ins),
        Lowered::Kernel(_) | Lowered::Interpret => eval_op(op, ins).expect("the op evaluates"),
    }
}

fn run_graph(graph: &Graph, ins: &[Tensor]) -> Vec<Tensor> {
    crate::graph::verify(graph).expect("the body is valid");
    let mut values: HashMap<_, Tensor> =
        graph.inputs().iter().map(|(_, v)| *v).zip(ins.iter().cloned()).collect();
    for (_, data) in graph.nodes() {
        let ins: Vec<Tensor> = data.ins.iter().map(|v| values[v].clone()).collect();
        let outs: Vec<TensorType> = data.outs.iter().map(|&v| graph.ty(v).clone()).collect();
        let results = match &data.op {
            Op::Constant(constant) => constant.eval(&[]).expect("constants evaluate"),
            op => run_lowered(op, &ins, &outs),
        };
        values.extend(data.outs.iter().copied().zip(results));
    }
    graph.outputs().iter().map(|(_, v)| values[v].clone()).collect()
}

/// The results of a nest, each element from the formula.
pub(crate) fn run_nest(nest: &Nest, ins: &[Tensor]) -> Vec<Tensor> {
    let operands = ins.iter().map(|t| (t.to_f64s(), t.to_i128s())).collect();
    let mut free: Vec<Vec<Var>> = Vec::new();
    for (_, (expr, _)) in nest.exprs.iter() {
        let mut vars: Vec<Var> = Vec::new();
        let mut add = |index: &Index| vars.extend(index.vars());
        match expr {
            Expr::Load { index, guards, .. } => {
                index.iter().for_each(&mut add);
                guards.iter().for_each(|g| add(&g.index));
            }
            Expr::Index(index) => add(index),
            Expr::Inside(guards) => guards.iter().for_each(|g| add(&g.index)),
            Expr::Const(_) | Expr::Apply(..) | Expr::Reduce { .. } => {}
        }
        expr.visit_operands(&mut |v| vars.extend(&free[cranelift_entity::EntityRef::index(v)]));
        if let Expr::Reduce { vars: bound, .. } = expr {
            vars.retain(|v| !bound.contains(v));
        }
        vars.sort_unstable();
        vars.dedup();
        free.push(vars);
    }
    let mut run = Run { nest, operands, free, cache: HashMap::new() };
    let shape = nest.shape();
    let mut results = Vec::new();
    for &root in &nest.roots {
        let values: Vec<Operand> = super::points::points(&shape)
            .map(|at| {
                let env: HashMap<Var, i64> =
                    nest.domain.iter().copied().zip(at.iter().map(|&i| i as i64)).collect();
                run.value(root, &env)
            })
            .collect();
        results.push(with_element!(nest.dtype(root), T => {
            Tensor::from_fn::<T>(&shape, |i| narrow::<T>(values[i]))
        }));
    }
    results
}

fn narrow<T: Element>(value: Operand) -> T {
    match value {
        Operand::Float(x) => T::from_f64(x),
        Operand::Int(x) => T::from_i128(x),
    }
}

fn round(dtype: DType, value: Operand) -> Operand {
    with_element!(dtype, T => match dtype.is_float() {
        true => Operand::Float(narrow::<T>(value).to_f64()),
        false => Operand::Int(narrow::<T>(value).to_i128()),
    })
}

struct Run<'n> {
    nest: &'n Nest,
    operands: Vec<(Vec<f64>, Vec<i128>)>,
    free: Vec<Vec<Var>>,
    cache: HashMap<(Val, Vec<i64>), Operand>,
}

impl Run<'_> {
    fn index(&mut self, index: &Index, env: &HashMap<Var, i64>) -> i64 {
        let values: HashMap<Val, i64> = index
            .values()
            .into_iter()
            .map(|v| match self.value(v, env) {
                Operand::Int(x) => (v, x as i64),
                Operand::Float(_) => panic!("an index is computed from a float"),
            })
            .collect();
        index.eval(&|v| env[&v], &|v| values[&v])
    }

    fn holds(&mut self, guards: &[Guard], env: &HashMap<Var, i64>) -> bool {
        guards.iter().all(|g| (0..g.size as i64).contains(&self.index(&g.index, env)))
    }

    fn value(&mut self, val: Val, env: &HashMap<Var, i64>) -> Operand {
        let at = cranelift_entity::EntityRef::index(val);
        let key = (val, self.free[at].iter().map(|v| env[v]).collect::<Vec<_>>());
        if let Some(known) = self.cache.get(&key) {
            return *known;
        }
        let (expr, dtype) = self.nest.exprs[val].clone();
        let zero = if dtype.is_float() { Operand::Float(0.0) } else { Operand::Int(0) };
        let bits = |bits: u64| {
            let bytes = &bits.to_le_bytes()[..dtype.size()];
            let tensor = Tensor::from_bytes(dtype, &[], bytes).expect("the size is right");
            match dtype.is_float() {
                true => Operand::Float(tensor.to_f64s()[0]),
                false => Operand::Int(tensor.to_i128s()[0]),
            }
        };
        let value = match &expr {
            Expr::Load { operand, index, guards } => match self.holds(guards, env) {
                false => zero,
                true => {
                    let shape = self.nest.operands[*operand as usize].shape.clone();
                    let mut position = 0;
                    for ((i, &n), &stride) in index.iter().zip(&shape).zip(&strides(&shape)) {
                        let i = self.index(i, env);
                        assert!((0..n as i64).contains(&i), "index {i} is outside {shape:?}");
                        position += i as usize * stride;
                    }
                    let (floats, ints) = &self.operands[*operand as usize];
                    match dtype.is_float() {
                        true => Operand::Float(floats[position]),
                        false => Operand::Int(ints[position]),
                    }
                }
            },
            Expr::Const(c) => bits(*c),
            Expr::Index(index) => Operand::Int(i128::from(self.index(index, env))),
            Expr::Inside(guards) => Operand::Int(i128::from(self.holds(guards, env))),
            Expr::Apply(f, args) => {
                let operand_type = self.nest.dtype(args[args.len() - 1]);
                let args: Vec<Operand> = args.iter().map(|&a| self.value(a, env)).collect();
                round(dtype, scalar::eval(*f, operand_type, &args))
            }
            Expr::Reduce { kind, vars, arg } => {
                let extents: Vec<usize> = vars.iter().map(|v| v.extent).collect();
                let mut acc = bits(Reduction::identity(*kind, dtype));
                for at in super::points::points(&extents) {
                    let mut inner = env.clone();
                    inner.extend(vars.iter().copied().zip(at.iter().map(|&i| i as i64)));
                    let next = self.value(*arg, &inner);
                    acc = round(dtype, scalar::eval(kind.combine(), dtype, &[acc, next]));
                }
                acc
            }
        };
        self.cache.insert(key, value);
        value
    }
}
