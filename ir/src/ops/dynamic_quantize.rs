//! `dynamic_quantize_linear`: quantization to u8 with the scale and zero point that fit the data.

use super::{Lowered, OpDef, QuantizeLinear, Reduce, ReduceKind, arity};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::graph::{Builder, Value, Values};
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::TensorType;

/// Three results: the operand quantized to u8, the f32 scale and the u8 zero point, such that 0 and
/// every element are representable: `scale = (max - min) / 255`, `zero_point = round(-min / scale)`,
/// with min at most and max at least 0; where both are 0, the scale is 1/255.
///
/// - (C1) the operand is f32.
///
/// ONNX: `DynamicQuantizeLinear` (11..).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DynamicQuantizeLinear;

impl OpDef for DynamicQuantizeLinear {
    const NAMES: &'static [&'static str] = &["dynamic_quantize_linear"];
    const ONNX: &'static [(&'static str, std::ops::RangeInclusive<u32>)] =
        &[("DynamicQuantizeLinear", 11..=u32::MAX)];

    fn with_name(_: &str) -> DynamicQuantizeLinear {
        DynamicQuantizeLinear
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 1..=1)?;
        require!(ins[0].dtype == DType::F32, "C1", "{} is not f32", ins[0]);
        let scalar = |dtype| TensorType::fixed(dtype, &[]);
        Ok(vec![ins[0].with_dtype(DType::U8), scalar(DType::F32), scalar(DType::U8)])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let xs = ins[0].as_slice::<f32>();
        let nan = xs.iter().any(|x| x.is_nan());
        let extreme = |f: fn(f32, f32) -> f32| if nan { f32::NAN } else { xs.iter().copied().fold(0.0, f) };
        let (low, high) = (extreme(f32::min), extreme(f32::max));
        let range = if low == high { 1.0 } else { high - low };
        let scale = range / 255.0;
        let zero_point = (0.0 - low / scale).clamp(0.0, 255.0).round_ties_even() as u8;
        let quantize = QuantizeLinear { axis: 0, block_size: 0, to: DType::U8 };
        let (scale, zero_point) = (Tensor::scalar(scale), Tensor::scalar(zero_point));
        let mut outs = quantize.eval(&[ins[0].clone(), scale.clone(), zero_point.clone()])?;
        outs.extend([scale, zero_point]);
        Ok(outs)
    }

    fn lower(&self, ins: &[TensorType], _: &[TensorType]) -> Result<Lowered, Error> {
        Lowered::graph(ins, |b: &mut Builder, ins: &[Value]| {
            let [zero, one, most] = [0.0, 1.0, 255.0].map(|c| b.scalar(DType::F32, c));
            let all = |kind| Reduce { kind, axes: Vec::new().into(), keep: false, none_if_empty: false };
            let low = b.push1(all(ReduceKind::Min), &[ins[0]])?;
            let low = b.map(ScalarFn::Min, &[low, zero])?;
            let high = b.push1(all(ReduceKind::Max), &[ins[0]])?;
            let high = b.map(ScalarFn::Max, &[high, zero])?;
            let range = b.map(ScalarFn::Sub, &[high, low])?;
            let flat = b.map(ScalarFn::Eq, &[low, high])?;
            let range = b.map(ScalarFn::Select, &[flat, one, range])?;
            let scale = b.map(ScalarFn::Div, &[range, most])?;
            let steps = b.map(ScalarFn::Div, &[low, scale])?;
            let steps = b.map(ScalarFn::Sub, &[zero, steps])?;
            let steps = b.map(ScalarFn::Clamp, &[steps, zero, most])?;
            let rounded = b.map(ScalarFn::Round, &[steps])?;
            let zero_point = b.cast(rounded, DType::U8)?;
            let quantize = QuantizeLinear { axis: 0, block_size: 0, to: DType::U8 };
            let y = b.push1(quantize, &[ins[0], scale, zero_point])?;
            Ok(Values::from_slice(&[y, scale, zero_point]))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, sample};

    #[test]
    fn the_example_of_the_onnx_documentation() {
        let x = Tensor::new(&[6], &[0f32, 2., -3., -2.5, 1.34, 0.5]);
        let y = check(DynamicQuantizeLinear, &[x]);
        assert_eq!(y[0].to_ints(), [153, 255, 0, 26, 221, 179]);
        assert_eq!(y[1].to_f64s(), [f64::from(0.019_607_844f32)]);
        assert_eq!(y[2].to_ints(), [153]);
    }

    #[test]
    fn constant_and_positive_operands() {
        check(DynamicQuantizeLinear, &[Tensor::zeros(DType::F32, &[2, 3])]);
        check(DynamicQuantizeLinear, &[Tensor::new(&[3], &[1f32, 2., 3.])]);
        check(DynamicQuantizeLinear, &[sample(DType::F32, &[3, 4], 6)]);
    }
}
