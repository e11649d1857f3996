//! `concat`: tensors one after another along an axis.

use super::movement::{pick, position};
use super::{Gradients, Lowered, OpDef, Slice, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::loops::{Guard, NestBuilder, Val};
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, normalize_axis, strides};

/// The operands joined along an axis, in order.
///
/// - (C1) there is at least one operand, and all have one element type and rank;
/// - (C2) the axis lies within the rank;
/// - (C3) all other sizes are equal.
///
/// ONNX: `Concat` (4..).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Concat {
    /// The axis.
    pub axis: i64,
}

impl OpDef for Concat {
    const NAMES: &'static [&'static str] = &["concat"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[("Concat", 4..=u32::MAX)];

    fn with_name(_: &str) -> Concat {
        Concat::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("axis", Slot::Int(&mut self.axis))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=usize::MAX)?;
        let first = ins[0];
        let axis = normalize_axis(self.axis, first.rank());
        require!(axis.is_some(), "C2", "axis {} is outside {first}", self.axis);
        let axis = axis.unwrap_or(0);
        let mut joined = first.clone();
        for ty in &ins[1..] {
            require!(
                ty.dtype == first.dtype && ty.rank() == first.rank(),
                "C1",
                "{ty} does not join {first}"
            );
            for (d, (dim, other)) in joined.dims.iter_mut().zip(&ty.dims).enumerate() {
                if d == axis {
                    *dim = match (&*dim, other) {
                        (Dim::Fixed(a), Dim::Fixed(b)) => match a.checked_add(*b) {
                            Some(sum) => Dim::Fixed(sum),
                            None => return Err(Violation::new("C3", "the joined size overflows")),
                        },
                        (Dim::Fixed(0), d) | (d, Dim::Fixed(0)) => d.clone(),
                        _ => Dim::Unknown,
                    };
                } else {
                    require!(dim.may_equal(other), "C3", "{ty} differs from {first} beside axis {axis}");
                    *dim = dim.meet(other);
                }
            }
        }
        Ok(vec![joined])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let axis = normalize_axis(self.axis, ins[0].rank()).ok_or("the axis is outside the rank")?;
        // Which operand each position along the axis comes from, and where in it.
        let sources: Vec<(usize, usize)> =
            ins.iter().enumerate().flat_map(|(k, x)| (0..x.shape()[axis]).map(move |i| (k, i))).collect();
        let stride: Vec<_> = ins.iter().map(|x| strides(x.shape())).collect();
        let mut shape = ins[0].shape().to_vec();
        shape[axis] = sources.len();
        let mut at = shape.clone();
        Ok(vec![pick(&ins.iter().collect::<Vec<_>>(), &shape, |index| {
            at.copy_from_slice(index);
            let (which, i) = sources[index[axis]];
            at[axis] = i;
            (which, position(&at, &stride[which]))
        })])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let g = cx.dout(0);
        let axis = normalize_axis(self.axis, cx.shape(g).len()).expect("infer accepted the axis");
        let (mut gradients, mut start) = (Gradients::new(), 0);
        for (&operand, &wanted) in cx.ins.iter().zip(cx.wanted) {
            let end = start + cx.shape(operand)[axis] as i64;
            gradients.push(match wanted {
                true => Some(cx.builder.push1(Slice::along(axis, start, end), &[g])?),
                false => None,
            });
            start = end;
        }
        Ok(Vjp::Gradients(gradients))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let axis = cx.axis(self.axis, 0);
        let ins = cx.all_with_batch()?;
        cx.push(Concat { axis }, &ins)
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let axis = normalize_axis(self.axis, outs[0].rank()).expect("infer accepted the axis");
        let mut n = NestBuilder::new(&outs[0].shape());
        let at = n.domain();
        let mut offset = 0;
        let mut parts: Vec<(Guard, Val)> = Vec::new();
        for ty in ins {
            let shape = ty.shape();
            let operand = n.operand(ty.dtype, &shape);
            let size = shape[axis];
            if size == 0 {
                continue;
            }
            let mut index = at.clone();
            index[axis] = at[axis].add_const(-offset);
            let guard = Guard::new(index[axis].clone(), size);
            let element = n.load_guarded(operand, &index, std::slice::from_ref(&guard));
            parts.push((guard, element));
            offset += size as i64;
        }
        let result = match parts.pop() {
            None => n.constant_bits(outs[0].dtype, 0),
            Some((_, last)) => parts.iter().rev().fold(last, |rest, (guard, element)| {
                let inside = n.inside(std::slice::from_ref(guard));
                n.apply(ScalarFn::Select, &[inside, *element, rest])
            }),
        };
        Ok(Lowered::nest(n.finish(&[result])))
    }

    fn simplify(&self, b: &mut Builder, ins: &[Value]) -> Result<Option<Values>, Error> {
        let axis = normalize_axis(self.axis, b.ty(ins[0]).rank()).unwrap_or(0);
        let full: Values = ins.iter().copied().filter(|&v| b.ty(v).dims[axis] != Dim::Fixed(0)).collect();
        Ok(match full.as_slice() {
            [] => Some(Values::from_slice(&ins[..1])),
            [_] => Some(full),
            some if some.len() < ins.len() => Some(Values::from_slice(&[b.push1(self.clone(), some)?])),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;

    #[test]
    fn joins_in_order() {
        let a = Tensor::new(&[2, 1], &[1u16, 2]);
        let b = Tensor::zeros(DType::U16, &[2, 0]);
        let c = Tensor::new(&[2, 2], &[3u16, 4, 5, 6]);
        let y = Concat { axis: -1 }.eval(&[a, b, c]).unwrap().remove(0);
        assert_eq!(y, Tensor::new(&[2, 3], &[1u16, 3, 4, 2, 5, 6]));
    }

    #[test]
    fn unknown_sizes_meet() {
        let a = TensorType::new(DType::F32, [Dim::named("n"), Dim::Unknown]);
        let b = TensorType::new(DType::F32, [Dim::Fixed(2), Dim::Fixed(3)]);
        assert_eq!(Concat { axis: 0 }.infer(&[&a, &b]).unwrap()[0].to_string(), "f32[?, 3]");
        assert_eq!(Concat { axis: 1 }.infer(&[&a, &b]).unwrap()[0].to_string(), "f32[2, ?]");
        let c = TensorType::fixed(DType::F32, &[3, 3]);
        assert_eq!(Concat { axis: 1 }.infer(&[&b, &c]).unwrap_err().constraint, "C3");
        assert_eq!(
            Concat { axis: 0 }.infer(&[&TensorType::fixed(DType::F32, &[])]).unwrap_err().constraint,
            "C2"
        );
    }
}
