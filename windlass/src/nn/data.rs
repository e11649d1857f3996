//! Rows of tensors.

use windlass_ir::Tensor;

/// The rows of these numbers, in this order.
pub(super) fn rows(x: &Tensor, numbers: &[usize]) -> Tensor {
    let bytes = x.bytes().len().checked_div(x.shape()[0]).unwrap_or(0);
    let mut taken = Vec::with_capacity(bytes * numbers.len());
    for &row in numbers {
        taken.extend_from_slice(&x.bytes()[row * bytes..][..bytes]);
    }
    let mut shape = x.shape().to_vec();
    shape[0] = numbers.len();
    Tensor::from_bytes(x.dtype(), &shape, &taken).expect("the bytes are those of the rows")
}

/// Tensors of one type below one another.
pub(super) fn stacked(parts: &[Tensor]) -> Option<Tensor> {
    let first = parts.first()?;
    let mut shape = first.shape().to_vec();
    shape[0] = parts.iter().map(|part| part.shape()[0]).sum();
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.bytes().iter().copied()).collect();
    Tensor::from_bytes(first.dtype(), &shape, &bytes)
}

/// For each row, the position of its largest element along the last dimension; the first of equal ones.
pub(super) fn largest(x: &Tensor) -> Vec<i64> {
    let columns = x.shape().last().copied().unwrap_or(1).max(1);
    let best = |row: &[f64]| {
        let mut at = 0;
        for (i, value) in row.iter().enumerate() {
            if *value > row[at] {
                at = i;
            }
        }
        at as i64
    };
    x.to_f64s().chunks_exact(columns).map(best).collect()
}
