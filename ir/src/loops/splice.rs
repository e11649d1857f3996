//! Writing the statements of one kernel into another.

use cranelift_entity::SecondaryMap;
use rustc_hash::FxHashMap;

use super::{Buffer, Guard, Index, Kernel, KernelBuilder, Let, Rhs, Role, Stmt, Val, Var};

/// What becomes of the accesses to the parameters of a kernel that is spliced.
pub trait Redirect {
    /// The buffer that an access goes to, and the index there, in the variables of the kernel that is spliced.
    fn place(&mut self, buffer: Buffer, index: &Index) -> (Buffer, Index);

    /// Writes a value to where a store was redirected.
    fn store(&mut self, to: &mut KernelBuilder, buffer: Buffer, index: Index, val: Val) {
        to.store(buffer, index, val);
    }
}

impl KernelBuilder {
    /// Writes statements of another kernel into the innermost block. `bound` says what the variables are that these
    /// statements do not bind themselves, and `redirect` what becomes of the accesses to its parameters; its locals
    /// become locals of this kernel.
    ///
    /// # Panics
    /// If a statement uses a value that none of them defines.
    pub fn splice(
        &mut self,
        kernel: &Kernel,
        block: &[Stmt],
        bound: &[(Var, Index)],
        redirect: &mut dyn Redirect,
    ) {
        let mut locals: SecondaryMap<Buffer, Option<Buffer>> = SecondaryMap::new();
        for (buffer, data) in &kernel.buffers {
            if matches!(data.role, Role::Register | Role::Stack) {
                let name = format!("{}{}", data.name, self.fresh_var(0).id);
                locals[buffer] = Some(self.buffer(&name, data.dtype, data.len, data.role));
            }
        }
        let vars = bound.iter().cloned().collect();
        Splice { from: kernel, to: self, redirect, locals, vars, vals: FxHashMap::default() }.block(block);
    }
}

struct Splice<'a> {
    from: &'a Kernel,
    to: &'a mut KernelBuilder,
    redirect: &'a mut dyn Redirect,
    locals: SecondaryMap<Buffer, Option<Buffer>>,
    /// What variables and values are in the kernel that is written.
    vars: FxHashMap<Var, Index>,
    vals: FxHashMap<Val, Val>,
}

impl Splice<'_> {
    fn index(&self, index: &Index) -> Index {
        index.map(&|var| self.vars.get(&var), &|val| self.vals[&val])
    }

    fn guards(&self, guards: &[Guard]) -> Vec<Guard> {
        guards.iter().map(|guard| Guard { index: self.index(&guard.index), size: guard.size }).collect()
    }

    fn access(&mut self, buffer: Buffer, index: &Index) -> (Buffer, Index) {
        match self.locals[buffer] {
            Some(local) => (local, self.index(index)),
            None => {
                let (buffer, index) = self.redirect.place(buffer, index);
                (buffer, self.index(&index))
            }
        }
    }

    fn block(&mut self, block: &[Stmt]) {
        block.iter().for_each(|stmt| self.stmt(stmt));
    }

    fn stmt(&mut self, stmt: &Stmt) {
        match stmt {
            Stmt::For { var, extent, kind, body } => {
                let extent = self.index(extent);
                let own = self.to.begin_any_loop(*kind, var.extent, extent);
                self.vars.insert(*var, Index::var(own));
                self.block(body);
                self.to.end();
            }
            Stmt::If { guards, then, otherwise } => {
                let guards = self.guards(guards);
                self.to.begin_if(&guards);
                self.block(then);
                if !otherwise.is_empty() {
                    self.to.begin_else();
                    self.block(otherwise);
                }
                self.to.end();
            }
            Stmt::Let(Let { val, rhs }) => {
                let rhs = match rhs {
                    Rhs::Load { buffer, index, guards } => {
                        let (buffer, index) = self.access(*buffer, index);
                        Rhs::Load { buffer, index, guards: self.guards(guards) }
                    }
                    Rhs::Const(bits) => Rhs::Const(*bits),
                    Rhs::Index(index) => Rhs::Index(self.index(index)),
                    Rhs::Inside(guards) => Rhs::Inside(self.guards(guards)),
                    Rhs::Apply(f, args) => Rhs::Apply(*f, args.iter().map(|arg| self.vals[arg]).collect()),
                };
                let own = self.to.define(self.from.vals[*val], rhs);
                self.vals.insert(*val, own);
            }
            Stmt::Store { buffer, index, val } => {
                let is_local = self.locals[*buffer].is_some();
                let (buffer, index) = self.access(*buffer, index);
                match is_local {
                    true => self.to.store(buffer, index, self.vals[val]),
                    false => self.redirect.store(self.to, buffer, index, self.vals[val]),
                }
            }
            Stmt::Prefetch { buffer, index } => {
                let (buffer, index) = self.access(*buffer, index);
                self.to.prefetch(buffer, index);
            }
        }
    }
}
