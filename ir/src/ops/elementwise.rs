//! Scalar functions over broadcast tensors: one op struct, one text name a function.

use smallvec::{SmallVec, smallvec};

use super::{Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity, derivative};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::{DType, Element};
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::{Index, NestBuilder};
use crate::scalar::{self, Operand, ScalarFn};
use crate::tensor::Tensor;
use crate::types::{Dims, Shape, TensorType, broadcast_dims, strides};
use crate::with_element;

/// A scalar function applied element by element; operands broadcast as in numpy.
///
/// - (C1) the element types are those the function takes;
/// - (C2) the operands broadcast.
///
/// ONNX: `Add`, `Exp`, `Where`, `Cast` and the like import as this op, by their own importer.
#[derive(Clone, Debug, PartialEq)]
pub struct Elementwise {
    /// The function.
    pub f: ScalarFn,
}

impl OpDef for Elementwise {
    const NAMES: &'static [&'static str] = ScalarFn::NAMES;

    fn with_name(name: &str) -> Elementwise {
        Elementwise { f: ScalarFn::from_name(name, DType::F32).expect("names come from the list") }
    }

    fn name(&self) -> &'static str {
        self.f.name()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        match &mut self.f {
            ScalarFn::Cast(to) | ScalarFn::Bitcast(to) => codec.attr("to", Slot::DType(to)),
            _ => Ok(()),
        }
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, self.f.arity()..=self.f.arity())?;
        let dtypes: SmallVec<[DType; 3]> = ins.iter().map(|t| t.dtype).collect();
        let dtype = self.f.result_type(&dtypes).map_err(|message| Violation::new("C1", message))?;
        let mut dims: Dims = smallvec![];
        for ty in ins {
            let Some(joined) = broadcast_dims(&dims, &ty.dims) else {
                let types: Vec<String> = ins.iter().map(|t| t.to_string()).collect();
                return Err(Violation::new("C2", format!("{} do not broadcast", types.join(" and "))));
            };
            dims = joined;
        }
        Ok(vec![TensorType { dtype, dims }])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let types: Vec<TensorType> = ins.iter().map(Tensor::ty).collect();
        let out = self.infer(&types.iter().collect::<Vec<_>>()).map_err(|v| v.to_string())?.remove(0);
        let shape = out.shape();
        if let ScalarFn::Bitcast(to) = self.f {
            return Ok(vec![Tensor::from_bytes(to, &shape, ins[0].bytes()).expect("the sizes are equal")]);
        }
        if let (Some(f), [x, y]) = (arithmetic(self.f), ins)
            && out.dtype.is_float()
        {
            return Ok(vec![with_element!(out.dtype, T => apply_rows::<T>(f, x, y, &shape))]);
        }
        if let [x] = ins
            && x.dtype().is_float()
            && out.dtype.is_float()
        {
            return Ok(vec![with_element!(out.dtype, T => apply_each::<T>(self.f, x))]);
        }
        let alike = ins.iter().all(|tensor| tensor.shape() == &*shape);
        let mut positions = Broadcast::new(ins.iter().map(Tensor::shape), &shape);
        let columns: Vec<Vec<Operand>> = ins.iter().map(to_operands).collect();
        // For select and comparisons the type that matters is that of the last operand.
        let dtype = ins[ins.len() - 1].dtype();
        let mut args: SmallVec<[Operand; 3]> = smallvec![Operand::Int(0); ins.len()];
        let mut element = |number: usize| {
            for ((arg, column), &at) in args.iter_mut().zip(&columns).zip(&positions.at) {
                *arg = column[if alike { number } else { at }];
            }
            if !alike {
                positions.advance_element();
            }
            scalar::eval(self.f, dtype, &args)
        };
        Ok(vec![with_element!(out.dtype, T => Tensor::from_fn::<T>(&shape, |number| match element(number) {
            Operand::Float(x) => <T as Element>::from_f64(x),
            Operand::Int(x) => T::from_i128(x),
        }))])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        derivative::vjp(self.f, cx)
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.broadcasting(self.clone())
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let shape = outs[0].shape();
        let mut n = NestBuilder::new(&shape);
        let at = n.domain();
        let args: SmallVec<[_; 3]> = ins
            .iter()
            .map(|ty| {
                let operand = n.operand(ty.dtype, &ty.shape());
                n.load(operand, &broadcast_index(&at, &ty.shape()))
            })
            .collect();
        let result = n.apply(self.f, &args);
        Ok(Lowered::nest(n.finish(&[result])))
    }

    fn simplify(&self, b: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
        if let ScalarFn::Cast(to) = self.f
            && b.ty(ins[0]).dtype == to
        {
            return Ok(Some(smallvec![ins[0]]));
        }
        Ok(None)
    }
}

/// The index of the element of an operand of `shape` that broadcasts to `at`.
pub(crate) fn broadcast_index(at: &[Index], shape: &[usize]) -> Vec<Index> {
    let skipped = at.len() - shape.len();
    let part = |(i, &n): (&Index, &usize)| if n == 1 { Index::constant(0) } else { i.clone() };
    at[skipped..].iter().zip(shape).map(part).collect()
}

/// Every element in the wide type of its kind.
fn to_operands(tensor: &Tensor) -> Vec<Operand> {
    with_element!(tensor.dtype(), T => {
        let elements = tensor.as_slice::<T>().iter();
        match T::DTYPE.is_float() {
            true => elements.map(|&x| Operand::Float(Element::to_f64(x))).collect(),
            false => elements.map(|&x| Operand::Int(x.to_i128())).collect(),
        }
    })
}

/// The four operations of arithmetic, which folding applies to whole weights.
fn arithmetic(f: ScalarFn) -> Option<fn(f64, f64) -> f64> {
    match f {
        ScalarFn::Add => Some(|a, b| a + b),
        ScalarFn::Sub => Some(|a, b| a - b),
        ScalarFn::Mul => Some(|a, b| a * b),
        ScalarFn::Div => Some(|a, b| a / b),
        _ => None,
    }
}

/// A function from floats to floats of type `T`, of one tensor.
fn apply_each<T: Element>(f: ScalarFn, x: &Tensor) -> Tensor {
    let (dtype, elements) = (x.dtype(), x.to_f64s());
    Tensor::from_fn(x.shape(), |number| match scalar::eval(f, dtype, &[Operand::Float(elements[number])]) {
        Operand::Float(y) => <T as Element>::from_f64(y),
        Operand::Int(y) => T::from_i128(y),
    })
}

/// A function of two broadcast tensors of one float type, row by row.
fn apply_rows<T: Element>(f: fn(f64, f64) -> f64, x: &Tensor, y: &Tensor, shape: &[usize]) -> Tensor {
    let (a, b) = (x.as_slice::<T>(), y.as_slice::<T>());
    let mut result = Tensor::zeros(T::DTYPE, shape);
    let mut positions = Broadcast::new([x.shape(), y.shape()].into_iter(), shape);
    let steps = [positions.inner_step(0), positions.inner_step(1)];
    let row = positions.row().max(1);
    for slots in result.as_mut_slice::<T>().chunks_exact_mut(row) {
        let (at_a, at_b) = (positions.at[0], positions.at[1]);
        for (j, slot) in slots.iter_mut().enumerate() {
            let (u, v) = (a[at_a + j * steps[0]], b[at_b + j * steps[1]]);
            *slot = T::from_f64(f(Element::to_f64(u), Element::to_f64(v)));
        }
        positions.advance_row();
    }
    result
}

/// Walks over a result in row-major order, with the position of the element of each operand that is
/// broadcast to it. Neighbouring dimensions along which every operand moves on as along one are one.
struct Broadcast {
    /// The position in each operand.
    at: SmallVec<[usize; 3]>,
    index: Shape,
    shape: Shape,
    /// For each dimension, each operand's stride along it, 0 where it is broadcast.
    steps: SmallVec<[SmallVec<[usize; 3]>; 6]>,
}

impl Broadcast {
    fn new<'s>(operands: impl Iterator<Item = &'s [usize]> + Clone, whole: &[usize]) -> Broadcast {
        let step = |from: &[usize], d: usize| match (d + from.len()).checked_sub(whole.len()) {
            Some(own) if from[own] != 1 => strides(from)[own],
            _ => 0,
        };
        let (mut shape, mut steps) = (Shape::new(), SmallVec::<[SmallVec<[usize; 3]>; 6]>::new());
        for (d, &extent) in whole.iter().enumerate().filter(|(_, extent)| **extent != 1) {
            let own: SmallVec<[usize; 3]> = operands.clone().map(|from| step(from, d)).collect();
            match (shape.last_mut(), steps.last_mut()) {
                (Some(rows), Some(outer))
                    if outer.iter().zip(&own).all(|(outer, own)| *outer == own * extent) =>
                {
                    *rows *= extent;
                    *outer = own;
                }
                _ => {
                    shape.push(extent);
                    steps.push(own);
                }
            }
        }
        let index = shape.iter().map(|_| 0).collect();
        Broadcast { at: operands.map(|_| 0).collect(), index, shape, steps }
    }

    /// The extent of the last dimension.
    fn row(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// An operand's stride along the last dimension.
    fn inner_step(&self, operand: usize) -> usize {
        self.steps.last().map_or(0, |steps| steps[operand])
    }

    /// Moves on by an element.
    fn advance_element(&mut self) {
        self.advance(self.shape.len());
    }

    /// Moves on by a row.
    fn advance_row(&mut self) {
        self.advance(self.shape.len().saturating_sub(1));
    }

    /// Moves on by one along dimension `rank - 1`, carrying into the dimensions before it.
    fn advance(&mut self, rank: usize) {
        for d in (0..rank).rev() {
            self.index[d] += 1;
            self.at.iter_mut().zip(&self.steps[d]).for_each(|(at, step)| *at += step);
            if self.index[d] < self.shape[d] {
                return;
            }
            self.at.iter_mut().zip(&self.steps[d]).for_each(|(at, step)| *at -= step * self.shape[d]);
            self.index[d] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcast_operands_are_walked_as_their_strides_say() {
        let cases: [(&[usize], [&[usize]; 2]); 7] = [
            (&[], [&[], &[]]),
            (&[2, 3, 4], [&[2, 3, 4], &[4]]),
            (&[2, 3, 4], [&[3, 1], &[2, 1, 4]]),
            (&[5, 2, 1, 1], [&[5, 2, 1, 1], &[5, 1, 1, 1]]),
            (&[1, 6, 1, 2, 2], [&[6, 1, 2, 2], &[1]]),
            (&[3, 2, 2], [&[1, 2, 2], &[3, 1, 1]]),
            (&[2, 0, 3], [&[1, 0, 3], &[2, 1, 1]]),
        ];
        for (shape, operands) in cases {
            let count: usize = shape.iter().product();
            let place = |from: &[usize], number: usize| -> usize {
                let skipped = shape.len() - from.len();
                let index =
                    strides(shape).into_iter().zip(shape).map(|(step, &n)| number / step.max(1) % n.max(1));
                let own = index.skip(skipped).zip(from).zip(strides(from));
                own.map(|((i, &n), step)| if n == 1 { 0 } else { i * step }).sum()
            };
            let mut by_element = Broadcast::new(operands.into_iter(), shape);
            let mut by_row = Broadcast::new(operands.into_iter(), shape);
            let row = by_row.row().max(1);
            for number in 0..count {
                for (operand, from) in operands.into_iter().enumerate() {
                    assert_eq!(by_element.at[operand], place(from, number), "{shape:?} {from:?} {number}");
                    let within = number % row * by_row.inner_step(operand);
                    assert_eq!(
                        by_row.at[operand] + within,
                        place(from, number),
                        "{shape:?} {from:?} {number}"
                    );
                }
                by_element.advance_element();
                if (number + 1) % row == 0 {
                    by_row.advance_row();
                }
            }
        }
    }
}
