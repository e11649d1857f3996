//! Shared helpers of the Windlass test suites.

pub mod golden;
pub mod lowering;
