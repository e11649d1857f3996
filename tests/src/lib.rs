//! Shared helpers of the Windlass test suites.

#![forbid(unsafe_code)]

pub mod aot;
pub mod bounds;
pub mod generate;
pub mod golden;
pub mod kernels;
pub mod lowering;
pub mod nets;
pub mod widths;
