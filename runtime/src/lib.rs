//! Windlass: runtime.
