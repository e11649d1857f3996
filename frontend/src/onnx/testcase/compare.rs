//! Comparing results as numpy's `assert_allclose` does, which the suite's tolerances are made for.

use std::path::Path;

use windlass_ir::Tensor;

use crate::error::Error;

/// How far a result may be from the expected one: `|found - expected| <= atol + rtol * |expected|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// Relative to the expected value.
    pub rtol: f64,
    /// Absolute.
    pub atol: f64,
}

impl Default for Tolerance {
    fn default() -> Tolerance {
        Tolerance { rtol: 1e-3, atol: 1e-7 }
    }
}

impl Tolerance {
    /// Reads a `case.json`; what it does not say stays at the default.
    pub fn read(path: &Path) -> Result<Tolerance, Error> {
        let text = std::fs::read_to_string(path).map_err(Error::file(path))?;
        let subject = || path.display().to_string();
        let json: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| Error::invalid(subject(), error.to_string()))?;
        let mut tolerance = Tolerance::default();
        for (key, field) in [("rtol", &mut tolerance.rtol), ("atol", &mut tolerance.atol)] {
            match json.get(key).map(serde_json::Value::as_f64) {
                None => {}
                Some(Some(value)) if value >= 0.0 => *field = value,
                Some(_) => return Err(Error::invalid(subject(), format!("`{key}` is not a tolerance"))),
            }
        }
        Ok(tolerance)
    }
}

/// What comparing found.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// The largest absolute difference between finite elements; `None` if the types differ.
    pub largest: Option<f64>,
    /// Why the result is not the expected one, if it is not.
    pub reason: Option<String>,
}

/// Compares a result with the expected one. NaN equals NaN, infinities equal themselves.
pub fn compare(expected: &Tensor, found: &Tensor, tolerance: Tolerance) -> Difference {
    if expected.ty() != found.ty() {
        let reason = format!("expected {}, found {}", expected.ty(), found.ty());
        return Difference { largest: None, reason: Some(reason) };
    }
    let mut largest = 0.0f64;
    let mut outside = 0usize;
    let mut first = None;
    let mut visit = |i: usize, want: f64, got: f64, difference: f64| {
        let same = want == got || (want.is_nan() && got.is_nan());
        if !same && difference.is_finite() {
            largest = largest.max(difference);
        }
        // A difference that is NaN or infinite is outside any tolerance.
        let close =
            same || (difference.is_finite() && difference <= tolerance.atol + tolerance.rtol * want.abs());
        if !close {
            outside += 1;
            first.get_or_insert((i, want, got));
        }
    };
    if expected.dtype().is_float() {
        for (i, (want, got)) in expected.to_f64s().into_iter().zip(found.to_f64s()).enumerate() {
            visit(i, want, got, (got - want).abs());
        }
    } else {
        for (i, (want, got)) in expected.to_i128s().into_iter().zip(found.to_i128s()).enumerate() {
            visit(i, want as f64, got as f64, (got - want).unsigned_abs() as f64);
        }
    }
    let reason = first.map(|(i, want, got)| {
        let total = expected.len();
        format!(
            "{outside} of {total} elements differ, by up to {largest:e}; element {i} is {got}, not {want}"
        )
    });
    Difference { largest: Some(largest), reason }
}
