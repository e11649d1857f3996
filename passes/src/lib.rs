//! Windlass: passes.

#![forbid(unsafe_code)]

pub mod formula;
pub mod units;
