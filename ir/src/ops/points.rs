//! Walking over the multi-dimensional indices of a shape, for evals.

use crate::types::Shape;

/// Every index of a shape, in row-major order; one empty index for rank 0.
pub(crate) fn points(shape: &[usize]) -> impl Iterator<Item = Shape> + use<> {
    let shape: Shape = shape.into();
    let mut next: Option<Shape> = (!shape.contains(&0)).then(|| shape.iter().map(|_| 0).collect());
    std::iter::from_fn(move || {
        let current = next.take()?;
        let mut following = current.clone();
        for d in (0..shape.len()).rev() {
            following[d] += 1;
            if following[d] < shape[d] {
                next = Some(following);
                break;
            }
            following[d] = 0;
        }
        Some(current)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_cover_a_shape_in_order() {
        let all: Vec<Vec<usize>> = points(&[2, 2]).map(|p| p.to_vec()).collect();
        assert_eq!(all, [[0, 0], [0, 1], [1, 0], [1, 1]]);
        assert_eq!(points(&[]).count(), 1);
        assert_eq!(points(&[3, 0]).count(), 0);
    }
}
