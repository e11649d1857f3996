//! Windlass: frontend.
