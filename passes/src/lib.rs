//! Windlass: passes.
