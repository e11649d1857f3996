//! Rows of tensors, and tensors with names.

use std::collections::BTreeMap;
use std::fmt;

use windlass_ir::{Tensor, TensorType};

use super::error::TrainingError;

/// Tensors whose rows are examples, or what is true of them: one tensor for a model of one input or output, or several
/// with their names.
pub trait Examples: fmt::Debug {
    /// The tensors. The name of the only one may be empty.
    fn tensors(&self) -> Vec<(&str, &Tensor)>;
}

impl Examples for Tensor {
    fn tensors(&self) -> Vec<(&str, &Tensor)> {
        vec![("", self)]
    }
}

impl Examples for Vec<(&str, &Tensor)> {
    fn tensors(&self) -> Vec<(&str, &Tensor)> {
        self.clone()
    }
}

impl<const N: usize> Examples for [(&str, &Tensor); N] {
    fn tensors(&self) -> Vec<(&str, &Tensor)> {
        self.to_vec()
    }
}

impl Examples for Vec<(String, Tensor)> {
    fn tensors(&self) -> Vec<(&str, &Tensor)> {
        self.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
    }
}

impl Examples for BTreeMap<String, Tensor> {
    fn tensors(&self) -> Vec<(&str, &Tensor)> {
        self.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect()
    }
}

/// The tensors for these names, in their order.
pub(super) fn arranged<'a>(
    data: &'a dyn Examples,
    what: &'static str,
    names: &[&str],
) -> Result<Vec<&'a Tensor>, TrainingError> {
    let tensors = data.tensors();
    if let ([(name, tensor)], [only]) = (&tensors[..], names)
        && (name.is_empty() || name == only)
    {
        return Ok(vec![tensor]);
    }
    let known = || names.iter().map(|name| name.to_string()).collect();
    if let Some((name, _)) = tensors.iter().find(|(name, _)| !names.contains(name)) {
        return Err(TrainingError::UnknownData { what, name: name.to_string(), known: known() });
    }
    let of_name = |name: &&str| {
        let own: Vec<&Tensor> =
            tensors.iter().filter(|(own, _)| own == name).map(|(_, tensor)| *tensor).collect();
        match own[..] {
            [tensor] => Ok(tensor),
            _ => Err(TrainingError::MissingData { what, name: name.to_string(), count: own.len() }),
        }
    };
    names.iter().map(of_name).collect()
}

/// The types of tensors, as a key of what is compiled for them.
pub(super) fn form<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<TensorType> {
    tensors.into_iter().map(Tensor::ty).collect()
}

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
