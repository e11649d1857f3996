//! The loop interpreter: runs kernels statement by statement.
