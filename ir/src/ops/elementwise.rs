//! Scalar functions over broadcast tensors: one op struct, one text name a function.

use smallvec::{SmallVec, smallvec};

use super::{Lowered, NoGradient, OpDef, VjpCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::{DType, Element};
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::{Index, NestBuilder};
use crate::scalar::{self, Operand, ScalarFn};
use crate::tensor::Tensor;
use crate::types::{Dims, TensorType, broadcast_dims, strides};
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
        let positions: Vec<BroadcastPositions> =
            ins.iter().map(|t| BroadcastPositions::new(t.shape(), &shape)).collect();
        let columns: Vec<Vec<Operand>> = ins.iter().map(to_operands).collect();
        // For select and comparisons the type that matters is that of the last operand.
        let dtype = ins[ins.len() - 1].dtype();
        let mut args: SmallVec<[Operand; 3]> = smallvec![Operand::Int(0); ins.len()];
        let mut element = |i: usize| {
            for ((arg, column), position) in args.iter_mut().zip(&columns).zip(&positions) {
                *arg = column[position.at(i)];
            }
            scalar::eval(self.f, dtype, &args)
        };
        Ok(vec![with_element!(out.dtype, T => Tensor::from_fn::<T>(&shape, |i| match element(i) {
            Operand::Float(x) => <T as Element>::from_f64(x),
            Operand::Int(x) => T::from_i128(x),
        }))])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vec<Option<Value>>, NoGradient> {
        let _ = cx;
        Err(NoGradient::NotYet(self.name()))
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

/// Maps linear positions of a broadcast result to those of an operand.
struct BroadcastPositions {
    /// (size of the result's dimension, operand's stride along it or 0), innermost first.
    dims: SmallVec<[(usize, usize); 6]>,
    same: bool,
}

impl BroadcastPositions {
    fn new(from: &[usize], to: &[usize]) -> BroadcastPositions {
        let skipped = to.len() - from.len();
        let stride = strides(from);
        let step = |d: usize| if d < skipped || from[d - skipped] == 1 { 0 } else { stride[d - skipped] };
        let dims = (0..to.len()).rev().map(|d| (to[d], step(d))).collect();
        BroadcastPositions { dims, same: from == to }
    }

    fn at(&self, mut linear: usize) -> usize {
        if self.same {
            return linear;
        }
        let mut position = 0;
        for &(size, step) in &self.dims {
            position += (linear % size) * step;
            linear /= size;
        }
        position
    }
}
