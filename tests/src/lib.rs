//! Shared helpers of the Windlass test suites.

pub mod lowering;
