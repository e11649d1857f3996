//! The vector form: what one `vector` loop does to all of its lanes, as a straight line.
//!
//! This is the boundary between the loop level and whatever emits vector instructions. It says
//! nothing of how many lanes an instruction has: an emitter cuts the extent into pieces of the width
//! it likes, since lanes do not depend on each other. What is the same for every lane is set apart
//! (and computed once, by scalar code); each access to memory says how it moves from lane to lane.
//!
//! ```text
//! body   = instr*                                      in order, each value defined once
//! instr  = uniform let                                 the same in every lane
//!        | val "=" load buffer access guards           0 where a guard fails
//!        | val "=" index | inside guards               that mention the lane
//!        | val "=" function val*                       some operand varies
//!        | store buffer access val
//! access = origin "+" stride "*" lane | any index
//! ```

use cranelift_entity::EntitySet;
use windlass_ir::ScalarFn;
use windlass_ir::loops::{Block, Buffer, Guard, Index, Kernel, Let, Rhs, Stmt, Val, Var};

/// How the accessed element moves with the lane.
#[derive(Clone, Debug, PartialEq)]
pub enum Access<'k> {
    /// This many elements further for each lane.
    Strided {
        /// The whole index.
        index: &'k Index,
        /// Elements from one lane to the next; 0 for a store that every lane repeats.
        stride: i64,
    },
    /// In some other way (a division, or a gathered position).
    Irregular(&'k Index),
}

impl<'k> Access<'k> {
    /// The index, which mentions the lane.
    pub fn index(&self) -> &'k Index {
        match self {
            Access::Strided { index, .. } | Access::Irregular(index) => index,
        }
    }

    /// Whether consecutive lanes are consecutive elements.
    pub fn is_contiguous(&self) -> bool {
        matches!(self, Access::Strided { stride: 1, .. })
    }
}

/// One instruction over all lanes.
#[derive(Clone, Debug, PartialEq)]
pub enum Instr<'k> {
    /// A value that is the same in every lane.
    Uniform(&'k Let),
    /// A value that differs by lane, read from memory or a register tile.
    Load {
        /// The value.
        val: Val,
        /// From where.
        buffer: Buffer,
        /// Which elements.
        access: Access<'k>,
        /// Where one fails for a lane, the lane's value is 0.
        guards: &'k [Guard],
    },
    /// An index that mentions the lane, as i64.
    Index {
        /// The value.
        val: Val,
        /// The index.
        index: &'k Index,
    },
    /// Whether guards that mention the lane hold.
    Inside {
        /// The value.
        val: Val,
        /// The guards.
        guards: &'k [Guard],
    },
    /// A scalar function, lane by lane.
    Apply {
        /// The value.
        val: Val,
        /// The function.
        function: ScalarFn,
        /// Its operands; uniform ones are spread to all lanes.
        args: &'k [Val],
    },
    /// Writes one element per lane.
    Store {
        /// Where to.
        buffer: Buffer,
        /// Which elements.
        access: Access<'k>,
        /// What; a uniform value is spread to all lanes.
        val: Val,
    },
}

/// The body of a vector loop.
#[derive(Clone, Debug, PartialEq)]
pub struct Body<'k> {
    /// The loop's variable.
    pub lane: Var,
    /// What happens, in order.
    pub instrs: Vec<Instr<'k>>,
    /// The statements that it happens for, one each.
    pub stmts: &'k Block,
    /// Bytes of the widest element that differs by lane.
    pub widest: usize,
    /// Whether a register tile is read or written, so that lanes must be written out.
    pub uses_registers: bool,
    varying: EntitySet<Val>,
}

impl<'k> Body<'k> {
    /// Whether lanes are loaded one by one, from wherever each is.
    pub fn gathers(&self) -> bool {
        let gathers = |instr: &Instr<'_>| matches!(instr, Instr::Load { access: Access::Irregular(_), .. });
        self.instrs.iter().any(gathers)
    }

    /// The vector form of a vector loop's body, or what does not belong in one.
    pub fn new(kernel: &'k Kernel, lane: Var, block: &'k Block) -> Result<Body<'k>, String> {
        let mut body = Body {
            lane,
            instrs: Vec::with_capacity(block.len()),
            stmts: block,
            widest: 1,
            uses_registers: false,
            varying: EntitySet::new(),
        };
        for stmt in block {
            let instr = match stmt {
                Stmt::Let(binding) => body.binding(kernel, binding),
                Stmt::Store { buffer, index, val } => {
                    body.touch(kernel, *buffer);
                    Instr::Store { buffer: *buffer, access: body.access(index), val: *val }
                }
                Stmt::For { var, .. } => return Err(format!("the vector loop {lane} holds the loop {var}")),
                Stmt::If { .. } => return Err(format!("the vector loop {lane} holds an `if`")),
                Stmt::Prefetch { .. } => return Err(format!("the vector loop {lane} holds a prefetch")),
            };
            body.instrs.push(instr);
        }
        Ok(body)
    }

    /// Whether a value differs by lane.
    pub fn varies(&self, val: Val) -> bool {
        self.varying.contains(val)
    }

    fn binding(&mut self, kernel: &Kernel, binding: &'k Let) -> Instr<'k> {
        let val = binding.val;
        let instr = match &binding.rhs {
            Rhs::Load { buffer, index, guards } if self.any_mention(index, guards) => {
                self.touch(kernel, *buffer);
                Instr::Load { val, buffer: *buffer, access: self.access(index), guards }
            }
            Rhs::Index(index) if self.mentions(index) => Instr::Index { val, index },
            Rhs::Inside(guards) if guards.iter().any(|g| self.mentions(&g.index)) => {
                Instr::Inside { val, guards }
            }
            Rhs::Apply(function, args) if args.iter().any(|&a| self.varies(a)) => {
                Instr::Apply { val, function: *function, args }
            }
            Rhs::Load { buffer, .. } => {
                self.uses_registers |= kernel.buffers[*buffer].role == windlass_ir::loops::Role::Register;
                return Instr::Uniform(binding);
            }
            Rhs::Const(_) | Rhs::Index(_) | Rhs::Inside(_) | Rhs::Apply(..) => {
                return Instr::Uniform(binding);
            }
        };
        self.varying.insert(val);
        // A bool is as wide as what it is compared from or combined with.
        if kernel.vals[val] != windlass_ir::DType::Bool {
            self.widest = self.widest.max(kernel.vals[val].size());
        }
        instr
    }

    fn touch(&mut self, kernel: &Kernel, buffer: Buffer) {
        let buffer = &kernel.buffers[buffer];
        self.uses_registers |= buffer.role == windlass_ir::loops::Role::Register;
        self.widest = self.widest.max(buffer.dtype.size());
    }

    fn any_mention(&self, index: &Index, guards: &[Guard]) -> bool {
        self.mentions(index) || guards.iter().any(|g| self.mentions(&g.index))
    }

    fn mentions(&self, index: &Index) -> bool {
        index.mentions(self.lane) || index.values().iter().any(|&v| self.varies(v))
    }

    fn access(&self, index: &'k Index) -> Access<'k> {
        let gathered = index.values().iter().any(|&v| self.varies(v));
        match index.coefficient(self.lane) {
            Some(stride) if !gathered => Access::Strided { index, stride },
            _ => Access::Irregular(index),
        }
    }
}
