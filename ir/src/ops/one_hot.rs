//! `one_hot` and `trilu`: values chosen by where an element is.

use super::movement::{each_index, int, late_count, pick, position};
use super::{Concat, Gradients, Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Late, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::loops::{Index, NestBuilder};
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType, normalize_axis, strides};

/// A new axis of `depth` positions, holding the on value at the position the index gives (from the
/// end, if negative; nowhere, if outside) and the off value elsewhere. The operands are the indices
/// and the pair off, on.
///
/// - (C1) indices are numbers (floats truncate), values have shape `[2]`;
/// - (C2) the axis lies within the result's rank;
/// - (C3) the depth is one integer, not negative.
///
/// ONNX: `OneHot` (9..), whose depth is an operand.
#[derive(Clone, Debug, PartialEq)]
pub struct OneHot {
    /// The size of the new axis.
    pub depth: Late,
    /// Where it is in the result.
    pub axis: i64,
}

/// A triangle of the last two dimensions: above the `k`-th diagonal or below it, both included, and 0
/// elsewhere. The second operand, which may be absent, is `k`, an i64.
///
/// - (C1) the operand has rank 2 or more;
/// - (C2) `k` is one i64.
///
/// ONNX: `Trilu` (14..).
#[derive(Clone, Debug, PartialEq)]
pub struct Trilu {
    /// Whether the part above the diagonal is kept.
    pub upper: bool,
}

impl OpDef for OneHot {
    const NAMES: &'static [&'static str] = &["one_hot"];

    fn with_name(_: &str) -> OneHot {
        OneHot { depth: Late::default(), axis: -1 }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("depth", Slot::Late(&mut self.depth))?;
        codec.attr("axis", Slot::Int(&mut self.axis))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=3)?;
        let (indices, values) = (ins[0], ins[1]);
        let pair = values.rank() == 1 && values.dims[0].may_equal(&Dim::Fixed(2));
        require!(
            indices.dtype != DType::Bool && pair,
            "C1",
            "{indices} and {values} are not indices and a pair"
        );
        let axis = normalize_axis(self.axis, indices.rank() + 1);
        require!(axis.is_some(), "C2", "axis {} is outside rank {}", self.axis, indices.rank() + 1);
        let depth = match self.depth.as_known() {
            Some(&[depth]) => {
                require!(depth >= 0, "C3", "the depth {depth} is negative");
                Dim::Fixed(depth as usize)
            }
            Some(depths) => return Err(Violation::new("C3", format!("{depths:?} is not one depth"))),
            None => {
                require!(
                    late_count(&self.depth, ins).is_none_or(|n| n == 1),
                    "C3",
                    "the depth is not one integer"
                );
                Dim::Unknown
            }
        };
        let mut dims = indices.dims.clone();
        dims.insert(axis.unwrap_or(0), depth);
        Ok(vec![TensorType { dtype: values.dtype, dims }])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (indices, values) = (&ins[0], &ins[1]);
        let depth = self.depth.known()[0];
        let axis = normalize_axis(self.axis, indices.rank() + 1).ok_or("the axis is outside the rank")?;
        let mut shape = indices.shape().to_vec();
        shape.insert(axis, depth as usize);
        let hot: Vec<i128> = indices
            .to_i128s()
            .into_iter()
            .map(|i| if i < 0 { i.saturating_add(i128::from(depth)) } else { i })
            .collect();
        let stride = strides(indices.shape());
        Ok(vec![pick(&[values], &shape, |index| {
            let (before, rest) = index.split_at(axis);
            let at = position(before, &stride[..axis]) + position(&rest[1..], &stride[axis..]);
            (0, usize::from(hot[at] == rest[0] as i128))
        })])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let (g, values) = (cx.dout(0), cx.ins[1]);
        let bits = cx.builder.constant(Tensor::from_f64s(cx.dtype(values), &[2], &[0.0, 1.0]));
        let hot = cx.push(self.clone(), &[cx.ins[0], bits])?;
        let axes: Vec<usize> = (0..cx.shape(g).len()).collect();
        let on = cx.map(ScalarFn::Mul, &[g, hot])?;
        let off = cx.map(ScalarFn::Sub, &[g, on])?;
        let mut pair = Vec::new();
        for part in [off, on] {
            let sum = cx.sum(part, &axes, false)?;
            pair.push(cx.reshape(sum, &[1])?);
        }
        let pair = cx.push(Concat { axis: 0 }, &pair)?;
        let mut gradients = Gradients::from_elem(None, cx.ins.len());
        gradients[1] = Some(pair);
        Ok(Vjp::Gradients(gradients))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        // The axis is one of the result.
        let axis = normalize_axis(self.axis, cx.outs[0].rank()).expect("infer accepted the axis") as i64 + 1;
        cx.along(OneHot { axis, ..self.clone() })
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let axis = normalize_axis(self.axis, outs[0].rank()).expect("infer accepted the axis");
        let mut n = NestBuilder::new(&outs[0].shape());
        let indices = n.operand(ins[0].dtype, &ins[0].shape());
        let values = n.operand(ins[1].dtype, &[2]);
        let mut index = n.domain();
        let here = index.remove(axis);
        let here = n.index_value(&here);
        let raw = n.load(indices, &index);
        let raw = n.cast(raw, DType::I64);
        let (zero, depth) = (int(&mut n, 0), int(&mut n, self.depth.known()[0]));
        let negative = n.apply(ScalarFn::Lt, &[raw, zero]);
        // An unsigned index past i64 wraps to a negative one; from the end it is still outside any depth.
        let from_end = n.apply(ScalarFn::Add, &[raw, depth]);
        let hot = match ins[0].dtype.is_unsigned_int() {
            true => raw,
            false => n.apply(ScalarFn::Select, &[negative, from_end, raw]),
        };
        let is_hot = n.apply(ScalarFn::Eq, &[hot, here]);
        let off = n.load(values, &[Index::constant(0)]);
        let on = n.load(values, &[Index::constant(1)]);
        let element = n.apply(ScalarFn::Select, &[is_hot, on, off]);
        Ok(Lowered::nest(n.finish(&[element])))
    }
}

impl OpDef for Trilu {
    const NAMES: &'static [&'static str] = &["trilu"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] = &[("Trilu", 14..=u32::MAX)];

    fn with_name(_: &str) -> Trilu {
        Trilu { upper: true }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("upper", Slot::Bool(&mut self.upper))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=2)?;
        require!(ins[0].rank() >= 2, "C1", "{} is not a matrix", ins[0]);
        if let Some(k) = ins.get(1) {
            let one = k.dtype == DType::I64 && k.dims.iter().all(|d| d.may_equal(&Dim::Fixed(1)));
            require!(one, "C2", "{k} is not one i64");
        }
        Ok(vec![ins[0].clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let x = &ins[0];
        let k = ins.get(1).map_or(0, |k| k.to_i128s()[0]);
        let zero = Tensor::zeros(x.dtype(), &[]);
        let mut places = Vec::with_capacity(x.len());
        each_index(x.shape(), |index| {
            let (row, column) = (index[index.len() - 2] as i128, index[index.len() - 1] as i128);
            let kept = if self.upper { column - row >= k } else { column - row <= k };
            places.push(if kept { (0, places.len()) } else { (1, 0) });
        });
        let mut places = places.into_iter();
        Ok(vec![pick(&[x, &zero], x.shape(), |_| places.next().unwrap_or((1, 0)))])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let mut operands = cx.ins.to_vec();
        operands[0] = cx.dout(0);
        let mut gradients = Gradients::from_elem(None, operands.len());
        gradients[0] = Some(cx.push(self.clone(), &operands)?);
        Ok(Vjp::Gradients(gradients))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.along(self.clone())
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let mut n = NestBuilder::new(&outs[0].shape());
        let operand = n.operand(ins[0].dtype, &ins[0].shape());
        let k = match ins.get(1) {
            None => int(&mut n, 0),
            Some(ty) => {
                let k = n.operand(ty.dtype, &ty.shape());
                n.load(k, &vec![Index::constant(0); ty.rank()])
            }
        };
        let at = n.domain();
        let diagonal = n.index_value(&at[at.len() - 1].sub(&at[at.len() - 2]));
        let kept = n.apply(if self.upper { ScalarFn::Ge } else { ScalarFn::Le }, &[diagonal, k]);
        let element = n.load(operand, &at);
        let zero = n.constant_bits(ins[0].dtype, 0);
        let element = n.apply(ScalarFn::Select, &[kept, element, zero]);
        Ok(Lowered::nest(n.finish(&[element])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_hot_wraps_and_ignores() {
        let indices = Tensor::new(&[3], &[1i64, -3, 7]);
        let values = Tensor::new(&[2], &[2.0f32, 5.0]);
        let op = OneHot { depth: vec![3].into(), axis: 0 };
        let y = op.eval(&[indices, values]).unwrap().remove(0);
        assert_eq!(y, Tensor::new(&[3, 3], &[2.0f32, 5.0, 2.0, 5.0, 2.0, 2.0, 2.0, 2.0, 2.0]));
    }

    #[test]
    fn triangles() {
        let x = Tensor::new(&[2, 3], &[1u8, 2, 3, 4, 5, 6]);
        let upper = Trilu { upper: true };
        assert_eq!(upper.eval(&[x.clone()]).unwrap()[0].to_ints(), [1, 2, 3, 0, 5, 6]);
        let lower = Trilu { upper: false };
        let k = Tensor::new(&[1], &[-1i64]);
        assert_eq!(lower.eval(&[x.clone(), k]).unwrap()[0].to_ints(), [0, 0, 0, 4, 0, 0]);
        let far = Tensor::scalar(i64::MIN);
        assert_eq!(upper.eval(&[x.clone(), far]).unwrap()[0], x);
    }
}
