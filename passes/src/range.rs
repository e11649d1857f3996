//! What integers of a graph lie between, as far as it is known before they are computed.

use windlass_ir::ops::PadMode;
use windlass_ir::{DType, Graph, Op, ScalarFn, Tensor, Value};

/// The least and the greatest value that there may be.
pub type Range = (i128, i128);

/// The most nodes that are looked through.
const DEPTH: usize = 12;

/// What the elements of an integer value lie between: at the most what its type holds.
pub fn range(graph: &Graph, value: Value) -> Range {
    within(graph, value, DEPTH)
}

fn within(graph: &Graph, value: Value, depth: usize) -> Range {
    let whole = graph.ty(value).dtype.int_range();
    let Some(data) = graph.def_node(value).filter(|_| depth > 0) else { return whole };
    let of = |at: usize| match graph.ty(data.ins[at]).dtype.is_int() {
        true => within(graph, data.ins[at], depth - 1),
        false => whole,
    };
    let (least, greatest) = match &*data.op {
        Op::Constant(_) => match graph.as_constant(value).filter(|constant| constant.is_uniform()) {
            Some(constant) if !constant.is_empty() => {
                let only = constant.to_i128s()[0];
                (only, only)
            }
            _ => whole,
        },
        Op::Elementwise(op) => match op.f {
            ScalarFn::Cast(_) => of(0),
            ScalarFn::Add => {
                let (a, b) = (of(0), of(1));
                (a.0 + b.0, a.1 + b.1)
            }
            ScalarFn::Sub => {
                let (a, b) = (of(0), of(1));
                (a.0 - b.1, a.1 - b.0)
            }
            _ => whole,
        },
        Op::Pad(op) if op.mode == PadMode::Constant => {
            let (a, b) = (of(0), of(1));
            (a.0.min(b.0), a.1.max(b.1))
        }
        Op::Transpose(_) | Op::Reshape(_) => of(0),
        _ => whole,
    };
    // What does not fit its type wraps.
    if whole.0 <= least && greatest <= whole.1 { (least, greatest) } else { whole }
}

/// What sums of products of elements of `x` and of all elements of `w` at one position of its dimension `kept` lie
/// between, and parts of such sums.
pub fn sums_of_products(graph: &Graph, x: Value, w: Value, kept: usize) -> Range {
    let (least, greatest) = range(graph, x);
    let (negative, positive) = sums(graph, w, kept);
    let (least, greatest) = (least.min(0), greatest.max(0));
    (positive * least + negative * greatest, positive * greatest + negative * least)
}

/// The least sum of negative elements, and the greatest of positive ones, at one position of a dimension.
fn sums(graph: &Graph, w: Value, kept: usize) -> Range {
    let (mut value, mut axis) = (w, kept);
    while let Some(data) = graph.def_node(value) {
        match &*data.op {
            Op::Elementwise(op) if op.f == ScalarFn::Cast(DType::I32) => {}
            Op::Transpose(op) => match op.perm.get(axis).map(|&from| usize::try_from(from)) {
                Some(Ok(from)) => axis = from,
                _ => break,
            },
            Op::Constant(_) => {
                let constant = graph.as_constant(value).filter(|tensor| tensor.dtype() == DType::I8);
                if let Some(constant) = constant.filter(|tensor| !tensor.is_empty()) {
                    return sums_of_bytes(constant, axis);
                }
                break;
            }
            _ => break,
        }
        value = data.ins[0];
    }
    let count = graph.ty(w).as_len().map_or(i128::from(u32::MAX), |len| len as i128);
    let positions = graph.ty(w).dims[kept].as_fixed().map_or(1, |n| n.max(1) as i128);
    let (least, greatest) = range(graph, w);
    (least.min(0) * count / positions, greatest.max(0) * count / positions)
}

fn sums_of_bytes(tensor: &Tensor, axis: usize) -> Range {
    let shape = tensor.shape();
    let inner: usize = shape[axis + 1..].iter().product();
    let mut sums = vec![[0i64; 2]; shape[axis]];
    for (at, run) in tensor.as_slice::<i8>().chunks(inner.max(1)).enumerate() {
        let sums = &mut sums[at % shape[axis]];
        for block in run.chunks(SUMMED) {
            // Loops over fixed numbers of small integers become vector instructions.
            let mut lanes = [[0i16; SUM_LANES]; 2];
            let (whole, rest) = block.as_chunks::<SUM_LANES>();
            for bytes in whole {
                for (lane, &w) in bytes.iter().enumerate() {
                    lanes[0][lane] += i16::from(w.min(0));
                    lanes[1][lane] += i16::from(w.max(0));
                }
            }
            for &w in rest {
                lanes[0][0] += i16::from(w.min(0));
                lanes[1][0] += i16::from(w.max(0));
            }
            sums.iter_mut().zip(lanes).for_each(|(sum, lanes)| {
                *sum += lanes.iter().map(|&lane| i64::from(lane)).sum::<i64>();
            });
        }
    }
    sums.iter().fold((0, 0), |range, &[n, p]| (range.0.min(n.into()), range.1.max(p.into())))
}

/// Bytes that are summed side by side.
const SUM_LANES: usize = 16;

/// Bytes after which the sums are at most 128 times as many in each lane, which 16 bits hold, with those that are left over.
const SUMMED: usize = 224 * SUM_LANES;

#[cfg(test)]
mod tests {
    use windlass_ir::ops::{Pad, Transpose};
    use windlass_ir::{Builder, TensorType};

    use super::*;

    #[test]
    fn bytes_with_a_zero_point_and_padding() {
        let mut b = Builder::new("test");
        let x = b.input("x", TensorType::fixed(DType::U8, &[2, 2]));
        let x = b.cast(x, DType::I32).unwrap();
        assert_eq!(range(b.graph(), x), (0, 255));
        let three = b.scalar(DType::I32, 3.0);
        let less = b.map(ScalarFn::Sub, &[x, three]).unwrap();
        assert_eq!(range(b.graph(), less), (-3, 252));
        let fill = b.scalar(DType::I32, 300.0);
        let pad = Pad { pads: vec![0, 1].into(), axes: vec![0].into(), mode: PadMode::Constant };
        let padded = b.push1(pad, &[less, fill]).unwrap();
        assert_eq!(range(b.graph(), padded), (-3, 300));
        let wrapped = b.cast(padded, DType::I8).unwrap();
        assert_eq!(range(b.graph(), wrapped), (-128, 127));
        let product = b.map(ScalarFn::Mul, &[less, less]).unwrap();
        assert_eq!(range(b.graph(), product), DType::I32.int_range());
    }

    #[test]
    fn sums_of_a_constant_weight_and_of_one_that_is_not() {
        let mut b = Builder::new("test");
        let x = b.input("x", TensorType::fixed(DType::U8, &[2, 3]));
        let x = b.cast(x, DType::I32).unwrap();
        let bytes = b.constant(Tensor::new(&[2, 3], &[1i8, 2, 3, -4, 5, -6]));
        let w = b.cast(bytes, DType::I32).unwrap();
        let w = b.push1(Transpose { perm: vec![1, 0] }, &[w]).unwrap();
        assert_eq!(sums_of_products(b.graph(), x, w, 1), (-2550, 1530));
        assert_eq!(sums_of_products(b.graph(), x, w, 0), (-1530, 1785));
        let w = b.input("w", TensorType::fixed(DType::I8, &[4, 5]));
        assert_eq!(sums_of_products(b.graph(), x, w, 1), (-128 * 4 * 255, 127 * 4 * 255));
    }
}
