//! Evaluates nests as they are written, element by element.
//!
//! This holds an op's `lower` against its `eval` before any schedule comes in. Every expression is
//! computed in f64 or i128 and rounded or wrapped once into its type; a reduction accumulates in f64
//! (integers: wrapping at each step) and is rounded once, so it is at least as close to the true
//! value as any order of adding in the type itself.

use cranelift_entity::SecondaryMap;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::{Expr, Guard, Index, Nest, Reduction, Val, Var};
use crate::dtype::{DType, Element};
use crate::error::Error;
use crate::scalar::{self, Operand, ScalarFn};
use crate::tensor::Tensor;
use crate::types::strides;
use crate::with_element;

/// The results of a nest on operands of the types it declares.
pub fn interpret_nest(nest: &Nest, operands: &[Tensor]) -> Result<Vec<Tensor>, Error> {
    let fail = |message: String| Error::Run { kernel: "nest".to_string(), message };
    if operands.len() != nest.operands.len() {
        return Err(Error::InputCount { expected: nest.operands.len(), found: operands.len() });
    }
    for (i, (declared, tensor)) in nest.operands.iter().zip(operands).enumerate() {
        if declared.dtype != tensor.dtype() || declared.shape.as_slice() != tensor.shape() {
            let declared = format!("{}{:?}", declared.dtype, declared.shape);
            return Err(fail(format!("operand {i} is {declared}, found {}", tensor.ty())));
        }
    }
    let mut evaluator = Evaluator {
        nest,
        columns: operands.iter().map(to_column).collect(),
        strides: operands.iter().map(|t| strides(t.shape()).iter().map(|&s| s as i64).collect()).collect(),
        free: free_vars(nest),
        vars: FxHashMap::default(),
        clock: 0,
        known: SecondaryMap::with_default((Operand::Int(0), 0)),
    };
    let shape = nest.shape();
    let len: usize = shape.iter().product();
    let mut results: Vec<Vec<Operand>> = vec![Vec::with_capacity(len); nest.roots.len()];
    for i in 0..len {
        let mut rest = i;
        for var in nest.domain.iter().rev() {
            evaluator.set(*var, (rest % var.extent) as i64);
            rest /= var.extent;
        }
        for (column, &root) in results.iter_mut().zip(&nest.roots) {
            column.push(evaluator.value(root).map_err(fail)?);
        }
    }
    Ok(results
        .iter()
        .zip(&nest.roots)
        .map(|(column, &root)| to_tensor(nest.dtype(root), &shape, column))
        .collect())
}

/// The variables each expression depends on, those of its own reductions excepted.
fn free_vars(nest: &Nest) -> SecondaryMap<Val, Vec<Var>> {
    let mut free: SecondaryMap<Val, Vec<Var>> = SecondaryMap::new();
    for (val, (expr, _)) in nest.exprs.iter() {
        let mut vars: Vec<Var> = Vec::new();
        expr.visit_operands(&mut |v| vars.extend(&free[v]));
        match expr {
            Expr::Load { index, guards, .. } => {
                vars.extend(index.iter().flat_map(Index::vars));
                vars.extend(guards.iter().flat_map(|g| g.index.vars()));
            }
            Expr::Index(index) => vars.extend(index.vars()),
            Expr::Inside(guards) => vars.extend(guards.iter().flat_map(|g| g.index.vars())),
            Expr::Const(_) | Expr::Apply(..) => {}
            Expr::Reduce { vars: bound, .. } => vars.retain(|v| !bound.contains(v)),
        }
        vars.sort_unstable();
        vars.dedup();
        free[val] = vars;
    }
    free
}

fn to_column(tensor: &Tensor) -> Vec<Operand> {
    match tensor.dtype().is_float() {
        true => tensor.to_f64s().into_iter().map(Operand::Float).collect(),
        false => tensor.to_i128s().into_iter().map(Operand::Int).collect(),
    }
}

fn to_tensor(dtype: DType, shape: &[usize], column: &[Operand]) -> Tensor {
    with_element!(dtype, T => Tensor::from_fn::<T>(shape, |i| element::<T>(column[i])))
}

fn element<T: Element>(value: Operand) -> T {
    match value {
        Operand::Float(x) => T::from_f64(x),
        Operand::Int(x) => T::from_i128(x),
    }
}

fn wide<T: Element>(value: T) -> Operand {
    match T::DTYPE.is_float() {
        true => Operand::Float(value.to_f64()),
        false => Operand::Int(value.to_i128()),
    }
}

/// A value rounded or wrapped into a type.
fn narrow(dtype: DType, value: Operand) -> Operand {
    with_element!(dtype, T => wide(element::<T>(value)))
}

fn from_bits(dtype: DType, bits: u64) -> Operand {
    with_element!(dtype, T => {
        let bytes = bits.to_le_bytes();
        wide::<T>(bytemuck::pod_read_unaligned(&bytes[..size_of::<T>()]))
    })
}

fn to_bits(dtype: DType, value: Operand) -> u64 {
    with_element!(dtype, T => {
        let mut bytes = [0; 8];
        bytes[..size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&element::<T>(value)));
        u64::from_le_bytes(bytes)
    })
}

struct Evaluator<'n> {
    nest: &'n Nest,
    columns: Vec<Vec<Operand>>,
    strides: Vec<SmallVec<[i64; 6]>>,
    free: SecondaryMap<Val, Vec<Var>>,
    /// The value of each variable and when it last changed.
    vars: FxHashMap<Var, (i64, u64)>,
    clock: u64,
    /// Each expression's last value and when it was computed; 0 is never.
    known: SecondaryMap<Val, (Operand, u64)>,
}

impl Evaluator<'_> {
    fn set(&mut self, var: Var, value: i64) {
        if self.vars.get(&var).is_none_or(|(old, _)| *old != value) {
            self.clock += 1;
            self.vars.insert(var, (value, self.clock));
        }
    }

    fn value(&mut self, val: Val) -> Result<Operand, String> {
        let (value, time) = self.known[val];
        let changed = self.free[val].iter().map(|v| self.vars.get(v).map_or(0, |(_, t)| *t)).max();
        if time > changed.unwrap_or(0) {
            return Ok(value);
        }
        let value = self.compute(val)?;
        self.clock += 1;
        self.known[val] = (value, self.clock);
        Ok(value)
    }

    fn compute(&mut self, val: Val) -> Result<Operand, String> {
        let nest = self.nest;
        let (expr, dtype) = &nest.exprs[val];
        Ok(match expr {
            Expr::Load { operand, index, guards } => {
                if !self.all(guards)? {
                    return Ok(from_bits(*dtype, 0));
                }
                let operand = *operand as usize;
                let shape = &nest.operands[operand].shape;
                let mut at = 0;
                for ((index, &size), d) in index.iter().zip(shape).zip(0..) {
                    let i = self.position(index)?;
                    if i as u64 >= size as u64 {
                        return Err(format!(
                            "{val}: index {i} in dimension {d} of operand {operand}, {shape:?}"
                        ));
                    }
                    at += i * self.strides[operand][d];
                }
                self.columns[operand][at as usize]
            }
            Expr::Const(bits) => from_bits(*dtype, *bits),
            Expr::Index(index) => Operand::Int(i128::from(self.position(index)?)),
            Expr::Inside(guards) => Operand::Int(i128::from(self.all(guards)?)),
            Expr::Apply(f, args) => {
                let operands: SmallVec<[Operand; 3]> =
                    args.iter().map(|&a| self.value(a)).collect::<Result<_, _>>()?;
                let from = nest.dtype(args[args.len() - 1]);
                match f {
                    ScalarFn::Bitcast(to) => from_bits(*to, to_bits(from, operands[0])),
                    _ => narrow(*dtype, scalar::eval(*f, from, &operands)),
                }
            }
            Expr::Reduce { kind, vars, arg, .. } => self.reduce(*kind, vars, *arg, *dtype)?,
        })
    }

    fn reduce(&mut self, kind: Reduction, vars: &[Var], arg: Val, dtype: DType) -> Result<Operand, String> {
        // Floats accumulate in f64, integers in their own type.
        let within = if dtype.is_float() { DType::F64 } else { dtype };
        let mut sum = from_bits(within, kind.identity(within));
        let count: usize = vars.iter().map(|v| v.extent).product();
        for i in 0..count {
            let mut rest = i;
            for &var in vars.iter().rev() {
                self.set(var, (rest % var.extent) as i64);
                rest /= var.extent;
            }
            let next = self.value(arg)?;
            sum = narrow(within, scalar::eval(kind.combine(), within, &[sum, next]));
        }
        Ok(narrow(dtype, sum))
    }

    fn all(&mut self, guards: &[Guard]) -> Result<bool, String> {
        for guard in guards {
            if self.position(&guard.index)? as u64 >= guard.size as u64 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn position(&mut self, index: &Index) -> Result<i64, String> {
        let mut computed: SmallVec<[(Val, i64); 2]> = SmallVec::new();
        for val in index.values() {
            let Operand::Int(x) = self.value(val)? else { return Err(format!("{val} is no index")) };
            computed.push((val, x as i64));
        }
        let mut outside = None;
        index.visit_extents(&mut |val, extent| {
            let found = computed.iter().find(|(v, _)| *v == val).map_or(0, |(_, x)| *x);
            if found as u64 >= extent as u64 {
                outside = Some(format!("{val} is {found}, which is not in 0..{extent}"));
            }
        });
        match outside {
            Some(message) => Err(message),
            None => Ok(index.eval(&|var| self.vars.get(&var).map_or(0, |(x, _)| *x), &|val| {
                computed.iter().find(|(v, _)| *v == val).map_or(0, |(_, x)| *x)
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loops::NestBuilder;

    #[test]
    fn softmax_over_rows() {
        let mut n = NestBuilder::new(&[2, 3]);
        let x = n.operand(DType::F32, &[2, 3]);
        let at = n.domain();
        let row = |n: &mut NestBuilder, k: &Index| n.load(x, &[at[0].clone(), k.clone()]);
        let max = n.reduce(Reduction::Max, &[3], |n, k| row(n, &k[0]));
        let sum = n.reduce(Reduction::Sum, &[3], |n, k| {
            let x = row(n, &k[0]);
            let x = n.apply(ScalarFn::Sub, &[x, max]);
            n.apply(ScalarFn::Exp, &[x])
        });
        let own = row(&mut n, &at[1]);
        let own = n.apply(ScalarFn::Sub, &[own, max]);
        let own = n.apply(ScalarFn::Exp, &[own]);
        let root = n.apply(ScalarFn::Div, &[own, sum]);
        let nest = n.finish(&[root]);
        let x = [[0.5f64, -1.0, 2.0], [3.0, 3.0, 0.25]];
        let out = interpret_nest(&nest, &[Tensor::from_f64s(DType::F32, &[2, 3], x.as_flattened())]).unwrap();
        for (row, found) in x.iter().zip(out[0].to_f64s().chunks(3)) {
            let total: f64 = row.iter().map(|x| x.exp()).sum();
            for (x, y) in row.iter().zip(found) {
                assert!((x.exp() / total - y).abs() < 1e-6, "{y}");
            }
        }
    }

    #[test]
    fn gathered_positions_are_checked() {
        let mut n = NestBuilder::new(&[2]);
        let x = n.operand(DType::I32, &[4]);
        let at = n.operand(DType::I64, &[2]);
        let i = n.domain();
        let position = n.load(at, &i);
        let root = n.load(x, &[Index::value(position, 4)]);
        let nest = n.finish(&[root]);
        let x = Tensor::new::<i32>(&[4], &[10, 11, 12, 13]);
        let out = interpret_nest(&nest, &[x.clone(), Tensor::from_ints(&[3, 1])]).unwrap();
        assert_eq!(out[0].to_ints(), [13, 11]);
        assert!(interpret_nest(&nest, &[x, Tensor::from_ints(&[4, 1])]).is_err());
    }
}
