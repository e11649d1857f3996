//! Which line of a kernel's text code is written for, for listings that ask.
//!
//! The emitter enters each statement as it comes to it, and goes back to the one around when it is done; what is written
//! meanwhile, wherever it stands, is for that statement. Without [`Lines`] nothing is entered.

use cranelift_entity::EntityRef;
use cranelift_entity::packed_option::PackedOption;
use rustc_hash::FxHashMap;
use windlass_ir::loops::{Block, Kernel, Stmt};

use super::Emitter;
use crate::ssa::Line;

/// The line of each statement, by its address: a statement is reached from several places.
#[derive(Default)]
pub(super) struct Lines(FxHashMap<*const Stmt, Line>);

impl Lines {
    /// For an expanded kernel, of whose statements the originals are known.
    pub fn new(kernel: &Kernel, origins: &[u32]) -> Lines {
        fn visit(lines: &mut Lines, block: &Block, origins: &mut std::slice::Iter<'_, u32>) {
            for stmt in block {
                if let Some(&origin) = origins.next() {
                    lines.0.insert(stmt, Line::new(origin as usize + 1));
                }
                match stmt {
                    Stmt::For { body, .. } => visit(lines, body, origins),
                    Stmt::If { then, otherwise, .. } => {
                        visit(lines, then, origins);
                        visit(lines, otherwise, origins);
                    }
                    Stmt::Let(_) | Stmt::Store { .. } | Stmt::Prefetch { .. } => {}
                }
            }
        }
        let mut lines = Lines::default();
        visit(&mut lines, &kernel.body, &mut origins.iter());
        lines
    }

    /// The kernel's own line.
    pub fn first(&self) -> PackedOption<Line> {
        match self.0.is_empty() {
            true => PackedOption::default(),
            false => Line::new(0).into(),
        }
    }
}

impl Emitter<'_> {
    /// What is written from here on is for a statement.
    pub(super) fn enter(&mut self, stmt: &Stmt) {
        if !self.lines.0.is_empty() {
            self.func.line = self.lines.0.get(&std::ptr::from_ref(stmt)).copied().into();
        }
    }
}
