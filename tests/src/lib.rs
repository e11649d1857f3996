//! Shared helpers of the Windlass test suites.

pub mod generate;
pub mod golden;
pub mod kernels;
pub mod lowering;
