//! Windlass: ir.
