//! `non_max_suppression`: the best boxes of each class that do not overlap.

use super::{OpDef, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::Violation;
use crate::require;
use crate::tensor::Tensor;
use crate::types::{Dim, TensorType};

/// For each batch and class, boxes in descending order of score, leaving out those whose intersection
/// with a box already taken is more than `iou_threshold` of their union, and those that do not score above
/// `score_threshold`; at most `max_output_boxes` each. The result is i64 `[selected, 3]`: batch, class and
/// box. Boxes of equal score keep their order.
///
/// Operands are boxes `[B, N, 4]` and scores `[B, C, N]`, then one-element tensors: the number of boxes (an
/// integer), the overlap and, if there is one, the score. A box is two opposite corners `y, x, y, x`, or
/// with `center_point_box` its middle and size `x, y, width, height`.
///
/// - (C1) boxes and scores are f32 of these shapes;
/// - (C2) the number is i64 and the thresholds f32, of one element each.
///
/// ONNX: `NonMaxSuppression` (10..), whose importer gives the default operands.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NonMaxSuppression {
    /// Whether boxes are given by middle and size.
    pub center_point_box: bool,
}

/// A box by its lower and upper corner.
#[derive(Clone, Copy, Debug)]
struct Corners {
    low: [f32; 2],
    high: [f32; 2],
}

impl Corners {
    fn new(b: &[f32], center: bool) -> Corners {
        match center {
            false => {
                Corners { low: [b[0].min(b[2]), b[1].min(b[3])], high: [b[0].max(b[2]), b[1].max(b[3])] }
            }
            true => Corners {
                low: [b[0] - b[2] / 2.0, b[1] - b[3] / 2.0],
                high: [b[0] + b[2] / 2.0, b[1] + b[3] / 2.0],
            },
        }
    }

    fn area(self) -> f32 {
        (self.high[0] - self.low[0]) * (self.high[1] - self.low[1])
    }

    /// The intersection as a part of the union.
    fn overlap(self, other: Corners) -> f32 {
        let side = |d: usize| self.high[d].min(other.high[d]) - self.low[d].max(other.low[d]);
        let (height, width) = (side(0), side(1));
        let (a, b) = (self.area(), other.area());
        if height <= 0.0 || width <= 0.0 || a <= 0.0 || b <= 0.0 {
            return 0.0;
        }
        height * width / (a + b - height * width)
    }
}

impl OpDef for NonMaxSuppression {
    const NAMES: &'static [&'static str] = &["non_max_suppression"];

    fn with_name(_: &str) -> NonMaxSuppression {
        NonMaxSuppression::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("center_point_box", Slot::Bool(&mut self.center_point_box))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 4..=5)?;
        let (boxes, scores) = (ins[0], ins[1]);
        let shaped = boxes.rank() == 3
            && scores.rank() == 3
            && boxes.dtype == DType::F32
            && scores.dtype == DType::F32
            && boxes.dims[2].may_equal(&Dim::Fixed(4))
            && boxes.dims[0].may_equal(&scores.dims[0])
            && boxes.dims[1].may_equal(&scores.dims[2]);
        require!(shaped, "C1", "{boxes} are not boxes with scores {scores}");
        let single =
            |ty: &TensorType, dtype| ty.dtype == dtype && ty.dims.iter().all(|d| d.may_equal(&Dim::Fixed(1)));
        let fits = single(ins[2], DType::I64) && ins[3..].iter().all(|ty| single(ty, DType::F32));
        require!(fits, "C2", "the number of boxes is {}, the overlap {}", ins[2], ins[3]);
        Ok(vec![TensorType::new(DType::I64, [Dim::Unknown, Dim::Fixed(3)])])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let (boxes, scores) = (ins[0].as_slice::<f32>(), ins[1].as_slice::<f32>());
        let most = usize::try_from(ins[2].to_ints()[0]).unwrap_or(0);
        let overlap = ins[3].as_slice::<f32>()[0];
        let threshold = ins.get(4).map_or(f32::NEG_INFINITY, |t| t.as_slice::<f32>()[0]);
        let (classes, count) = (ins[1].shape()[1], ins[1].shape()[2]);
        let mut selected: Vec<i64> = Vec::new();
        for batch in 0..ins[1].shape()[0] {
            let corners: Vec<Corners> = boxes[batch * count * 4..][..count * 4]
                .chunks_exact(4)
                .map(|b| Corners::new(b, self.center_point_box))
                .collect();
            for class in 0..classes {
                let scores = &scores[(batch * classes + class) * count..][..count];
                let mut order: Vec<usize> = (0..count).filter(|&i| scores[i] > threshold).collect();
                order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
                let mut taken: Vec<usize> = Vec::new();
                for candidate in order {
                    if taken.len() >= most {
                        break;
                    }
                    if taken.iter().all(|&t| corners[t].overlap(corners[candidate]) <= overlap) {
                        taken.push(candidate);
                        selected.extend([batch as i64, class as i64, candidate as i64]);
                    }
                }
            }
        }
        Ok(vec![Tensor::new(&[selected.len() / 3, 3], &selected)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interpret::eval_op;

    fn operands(most: i64, threshold: f32) -> Vec<Tensor> {
        // Two boxes that overlap by more than half, one apart.
        let boxes = [0f32, 0., 1., 1., 0., 0.1, 1., 1.1, 0., 10., 1., 11.];
        vec![
            Tensor::new(&[1, 3, 4], &boxes),
            Tensor::new(&[1, 1, 3], &[0.75f32, 0.9, 0.3]),
            Tensor::scalar(most),
            Tensor::scalar(0.5f32),
            Tensor::scalar(threshold),
        ]
    }

    #[test]
    fn better_boxes_suppress_their_neighbours() {
        let run = |most, threshold| {
            eval_op(&NonMaxSuppression::default().into(), &operands(most, threshold)).unwrap()[0].to_ints()
        };
        assert_eq!(run(3, 0.0), [0, 0, 1, 0, 0, 2]);
        assert_eq!(run(1, 0.0), [0, 0, 1]);
        assert_eq!(run(3, 0.5), [0, 0, 1]);
        assert_eq!(run(0, 0.0), [0i64; 0]);
    }

    #[test]
    fn constraints_are_named() {
        let types: Vec<TensorType> = operands(1, 0.0).iter().map(Tensor::ty).collect();
        let mut ins: Vec<&TensorType> = types.iter().collect();
        let violated = |ins: &[&TensorType]| NonMaxSuppression::default().infer(ins).unwrap_err().constraint;
        ins[2] = &types[3];
        assert_eq!(violated(&ins), "C2");
        ins[0] = &types[1];
        assert_eq!(violated(&ins), "C1");
    }
}
