//! Windlass: codegen.
