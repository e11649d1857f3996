//! From kernels to functions of a code generator. One emitter so far: [`clif`], on every target.

pub mod clif;
