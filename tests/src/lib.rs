//! Shared helpers of the Windlass test suites.
