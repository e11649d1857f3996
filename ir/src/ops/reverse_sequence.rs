//! `reverse_sequence`: the first elements of each sequence in reverse order.

use super::movement::{clamped_index, int, pick, position};
use super::{Lowered, OpDef, Vjp, VjpCx, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::loops::NestBuilder;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{TensorType, normalize_axis, strides};

/// For each position along the batch axis, the first elements along the time axis reversed, as many
/// as the lengths say; the others stay. A length outside `0..=time` is an error of evaluation.
///
/// - (C1) both axes lie within the operand's rank and differ;
/// - (C2) lengths are an i32 or i64 vector, one for each position along the batch axis.
///
/// ONNX: `ReverseSequence` (10..).
#[derive(Clone, Debug, PartialEq)]
pub struct ReverseSequence {
    /// The axis of sequences.
    pub batch_axis: i64,
    /// The axis along a sequence.
    pub time_axis: i64,
}

impl ReverseSequence {
    fn axes(&self, rank: usize) -> Option<(usize, usize)> {
        Some((normalize_axis(self.batch_axis, rank)?, normalize_axis(self.time_axis, rank)?))
    }
}

impl OpDef for ReverseSequence {
    const NAMES: &'static [&'static str] = &["reverse_sequence"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] =
        &[("ReverseSequence", 10..=u32::MAX)];

    fn with_name(_: &str) -> ReverseSequence {
        ReverseSequence { batch_axis: 1, time_axis: 0 }
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("batch_axis", Slot::Int(&mut self.batch_axis))?;
        codec.attr("time_axis", Slot::Int(&mut self.time_axis))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=2)?;
        let (x, lengths) = (ins[0], ins[1]);
        let axes = self.axes(x.rank()).filter(|(batch, time)| batch != time);
        require!(axes.is_some(), "C1", "axes {} and {} of {x}", self.batch_axis, self.time_axis);
        let (batch, _) = axes.unwrap_or((0, 0));
        let fits = super::movement::is_index(lengths.dtype)
            && lengths.rank() == 1
            && lengths.dims[0].may_equal(&x.dims[batch]);
        require!(fits, "C2", "{lengths} does not hold {} lengths", x.dims[batch]);
        Ok(vec![x.clone()])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (x, lengths) = (&ins[0], ins[1].to_ints());
        let (batch, time) = self.axes(x.rank()).ok_or("an axis is outside the rank")?;
        let size = x.shape()[time];
        if let Some(bad) = lengths.iter().find(|&&n| n < 0 || n > size as i64) {
            return Err(format!("a sequence of {bad} does not fit a time axis of {size}"));
        }
        let stride = strides(x.shape());
        let mut at = x.shape().to_vec();
        Ok(vec![pick(&[x], x.shape(), |index| {
            at.copy_from_slice(index);
            let len = lengths[index[batch]] as usize;
            if index[time] < len {
                at[time] = len - 1 - index[time];
            }
            (0, position(&at, &stride))
        })])
    }

    fn vjp(&self, cx: &mut VjpCx<'_>) -> Result<Vjp, Error> {
        let g = cx.dout(0);
        let back = cx.push(self.clone(), &[g, cx.ins[1]])?;
        Ok(Vjp::Gradients(smallvec::smallvec![Some(back), None]))
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let (batch, _) = self.axes(cx.rank(0)).expect("infer accepted the axes");
        cx.merged(self.clone(), &[Some(batch), Some(0)], &[batch])
    }

    fn lower(&self, ins: &[TensorType], _: &[TensorType]) -> Result<Lowered, Error> {
        let shape = ins[0].shape();
        let (batch, time) = self.axes(shape.len()).expect("infer accepted the axes");
        let mut n = NestBuilder::new(&shape);
        let operand = n.operand(ins[0].dtype, &shape);
        let lengths = n.operand(ins[1].dtype, &ins[1].shape());
        let mut index = n.domain();
        let len = n.load(lengths, &index[batch..=batch]);
        let len = n.cast(len, DType::I64);
        let (here, one) = (n.index_value(&index[time]), int(&mut n, 1));
        let last = n.apply(ScalarFn::Sub, &[len, one]);
        let mirrored = n.apply(ScalarFn::Sub, &[last, here]);
        let inside = n.apply(ScalarFn::Lt, &[here, len]);
        let from = n.apply(ScalarFn::Select, &[inside, mirrored, here]);
        index[time] = clamped_index(&mut n, from, shape[time].max(1));
        let element = n.load(operand, &index);
        Ok(Lowered::nest(n.finish(&[element])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_sequence_is_reversed() {
        let x = Tensor::new(&[3, 2], &[1i32, 10, 2, 20, 3, 30]);
        let op = ReverseSequence::with_name("");
        let y = op.eval(&[x.clone(), Tensor::new(&[2], &[3i64, 2])]).unwrap().remove(0);
        assert_eq!(y.to_ints(), [3, 20, 2, 10, 1, 30]);
        assert!(op.eval(&[x, Tensor::new(&[2], &[4i64, 2])]).is_err());
    }
}
