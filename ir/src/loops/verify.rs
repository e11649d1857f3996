//! The verifier of kernels. A kernel is valid when all of these hold:
//!
//! - (L1) the names of the kernel and its buffers are identifiers, and buffers used are declared;
//! - (L2) a value is defined once, and before each use, in the same block or one around it;
//! - (L3) a loop variable is used inside its loop only, with the extent it has there; open loops have
//!   distinct variables, and a loop runs at most as often as its variable has values;
//! - (L4) types fit: functions get what they take, loads and stores move the buffer's type, constants
//!   fit their type, indices are made of i64 values, `index` gives i64 and `inside` bool;
//! - (L5) `in` buffers are not stored to and `out` buffers not loaded from;
//! - (L6) where its guards and the `if`s around it hold, an access is inside its buffer;
//! - (L7) a parallel loop is the kernel's only outermost statement, and what its iterations store
//!   depends on which it is;
//! - (L8) a vector loop holds only values and stores; its lanes store to distinct elements and load none
//!   that another lane stores;
//! - (L9) after expansion, functions are those that emitters implement ([`super::check_expanded`]);
//! - (L10) a register buffer is indexed by variables of unrolled and vector loops and constants alone.
//!
//! Where ranges do not settle L6 and L8, assignments of the variables are tried, corners first, and
//! an access is refused only with an assignment that shows the fault. The interpreter checks every
//! access it makes, so what escapes here is found there.

use cranelift_entity::SecondaryMap;
use smallvec::SmallVec;

use super::kernel::{Block, Buffer, Kernel, Let, LoopKind, Rhs, Role, Stmt};
use super::{Guard, Index, Val, Var};
use crate::dtype::DType;
use crate::error::Error;

/// How many assignments of the variables are tried where ranges do not settle a question.
const TRIES: usize = 64;

/// Checks every invariant of a kernel but L9.
pub fn verify_kernel(kernel: &Kernel) -> Result<(), Error> {
    let mut cx = Verifier {
        kernel,
        defined: SecondaryMap::new(),
        visible: SecondaryMap::new(),
        loops: Vec::new(),
        assumed: Vec::new(),
    };
    cx.names()?;
    let parallel = |stmt: &Stmt| matches!(stmt, Stmt::For { kind: LoopKind::Parallel, .. });
    if kernel.body.len() > 1
        && let Some(Stmt::For { var, .. }) = kernel.body.iter().find(|s| parallel(s))
    {
        return Err(cx.broken("L7", format!("the parallel loop over {var} is not alone")));
    }
    cx.block(&kernel.body)
}

/// What holds where a statement runs.
enum Assumption<'k> {
    /// Every guard holds.
    All(&'k [Guard]),
    /// Some guard fails.
    NotAll(&'k [Guard]),
    /// A loop's variable is below its number of iterations.
    Below(Var, &'k Index),
}

struct Verifier<'k> {
    kernel: &'k Kernel,
    defined: SecondaryMap<Val, bool>,
    visible: SecondaryMap<Val, bool>,
    /// Open loops, outermost first.
    loops: Vec<(Var, LoopKind)>,
    assumed: Vec<Assumption<'k>>,
}

impl<'k> Verifier<'k> {
    fn broken(&self, invariant: &'static str, message: String) -> Error {
        Error::Verify { invariant, message: format!("kernel `{}`: {message}", self.kernel.name) }
    }

    fn names(&self) -> Result<(), Error> {
        let is_identifier = |name: &str| {
            let head = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
            head && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let mut names: Vec<&str> = self.kernel.buffers.values().map(|b| b.name.as_str()).collect();
        names.push(&self.kernel.name);
        if let Some(name) = names.iter().find(|name| !is_identifier(name)) {
            return Err(self.broken("L1", format!("`{name}` is not an identifier")));
        }
        Ok(())
    }

    fn block(&mut self, block: &'k Block) -> Result<(), Error> {
        let mut own: Vec<Val> = Vec::new();
        for stmt in block {
            match stmt {
                Stmt::For { var, extent, kind, body } => self.repeat(*var, extent, *kind, body)?,
                Stmt::If { guards, then, otherwise } => {
                    self.guards(guards)?;
                    self.assumed.push(Assumption::All(guards));
                    self.block(then)?;
                    self.assumed.pop();
                    self.assumed.push(Assumption::NotAll(guards));
                    self.block(otherwise)?;
                    self.assumed.pop();
                }
                Stmt::Let(Let { val, rhs }) => {
                    if !self.kernel.vals.is_valid(*val) {
                        return Err(self.broken("L2", format!("{val} has no type")));
                    }
                    self.rhs(*val, rhs)?;
                    if self.defined[*val] {
                        return Err(self.broken("L2", format!("{val} is defined twice")));
                    }
                    self.defined[*val] = true;
                    self.visible[*val] = true;
                    own.push(*val);
                }
                Stmt::Store { buffer, index, val } => {
                    self.used(*val)?;
                    let data = &self.kernel.buffers[*buffer];
                    let dtype = self.kernel.vals[*val];
                    if data.dtype != dtype {
                        let message = format!("{val}: {dtype} is stored to `{}`: {}", data.name, data.dtype);
                        return Err(self.broken("L4", message));
                    }
                    if data.role == Role::In {
                        return Err(self.broken("L5", format!("`{}` is stored to", data.name)));
                    }
                    self.access(*buffer, index, &[])?;
                    self.parallel_store(*buffer, index)?;
                }
                Stmt::Prefetch { buffer, index } => {
                    self.index(index)?;
                    let data = &self.kernel.buffers[*buffer];
                    if data.role == Role::Register {
                        let message = format!("`{}` is fetched, and is in registers", data.name);
                        return Err(self.broken("L5", message));
                    }
                }
            }
        }
        for val in own {
            self.visible[val] = false;
        }
        Ok(())
    }

    fn repeat(&mut self, var: Var, extent: &'k Index, kind: LoopKind, body: &'k Block) -> Result<(), Error> {
        self.index(extent)?;
        if self.loops.iter().any(|(open, _)| open.id == var.id) {
            return Err(self.broken("L3", format!("{var} is the variable of a loop around its own")));
        }
        let (_, most) = extent.range();
        if most > var.extent as i64 {
            let over = Index::constant(var.extent as i64).sub(extent);
            if let Some(at) = self.counterexample(&over, usize::MAX, &[]) {
                let message = format!("the loop over {var} in 0..{extent} runs past {}{at}", var.extent);
                return Err(self.broken("L3", message));
            }
        }
        match kind {
            LoopKind::Parallel if !self.loops.is_empty() || !self.assumed.is_empty() => {
                return Err(self.broken("L7", format!("the parallel loop over {var} is not outermost")));
            }
            LoopKind::Parallel | LoopKind::Serial | LoopKind::Unroll => {}
            LoopKind::Vector => self.vector(var, body)?,
        }
        self.loops.push((var, kind));
        self.assumed.push(Assumption::Below(var, extent));
        self.block(body)?;
        self.assumed.pop();
        self.loops.pop();
        Ok(())
    }

    fn rhs(&mut self, val: Val, rhs: &Rhs) -> Result<(), Error> {
        let declared = self.kernel.vals[val];
        let found = match rhs {
            Rhs::Load { buffer, index, guards } => {
                self.guards(guards)?;
                let data = &self.kernel.buffers[*buffer];
                if data.role == Role::Out {
                    return Err(self.broken("L5", format!("{val} is loaded from `{}`", data.name)));
                }
                self.access(*buffer, index, guards)?;
                data.dtype
            }
            Rhs::Const(bits) => {
                let width = 8 * declared.size() as u32;
                let fits = *bits == bits & (u64::MAX >> (64 - width));
                if !fits || (declared == DType::Bool && *bits > 1) {
                    return Err(self.broken("L4", format!("{val}: {declared} cannot be {bits:#x}")));
                }
                declared
            }
            Rhs::Index(index) => {
                self.index(index)?;
                DType::I64
            }
            Rhs::Inside(guards) => {
                self.guards(guards)?;
                DType::Bool
            }
            Rhs::Apply(f, args) => {
                args.iter().try_for_each(|&arg| self.used(arg))?;
                let types: SmallVec<[DType; 3]> = args.iter().map(|&a| self.kernel.vals[a]).collect();
                f.result_type(&types).map_err(|message| self.broken("L4", format!("{val}: {message}")))?
            }
        };
        match found == declared {
            true => Ok(()),
            false => Err(self.broken("L4", format!("{val} is {declared}, its definition gives {found}"))),
        }
    }

    fn used(&self, val: Val) -> Result<(), Error> {
        match self.kernel.vals.is_valid(val) && self.visible[val] {
            true => Ok(()),
            false => Err(self.broken("L2", format!("{val} is used where it is not defined"))),
        }
    }

    fn guards(&self, guards: &[Guard]) -> Result<(), Error> {
        guards.iter().try_for_each(|guard| self.index(&guard.index))
    }

    fn index(&self, index: &Index) -> Result<(), Error> {
        for var in index.vars() {
            if !self.loops.iter().any(|(open, _)| *open == var) {
                let message = format!("{var} (below {}) in `{index}` is no open loop's", var.extent);
                return Err(self.broken("L3", message));
            }
        }
        for val in index.values() {
            self.used(val)?;
            if self.kernel.vals[val] != DType::I64 {
                let message = format!("{val}: {} is used in the index `{index}`", self.kernel.vals[val]);
                return Err(self.broken("L4", message));
            }
        }
        Ok(())
    }

    fn access(&self, buffer: Buffer, index: &Index, guards: &[Guard]) -> Result<(), Error> {
        if !self.kernel.buffers.is_valid(buffer) {
            return Err(self.broken("L1", format!("{buffer} is not declared")));
        }
        self.index(index)?;
        let data = &self.kernel.buffers[buffer];
        if data.role == Role::Register {
            let constant = |var: &Var| {
                let kind = self.loops.iter().find(|(open, _)| open == var).map(|(_, kind)| *kind);
                matches!(kind, Some(LoopKind::Unroll | LoopKind::Vector))
            };
            if !index.values().is_empty() || !index.vars().iter().all(constant) {
                let message = format!("the register buffer `{}` is indexed by `{index}`", data.name);
                return Err(self.broken("L10", message));
            }
        }
        if index.is_within(data.len) {
            return Ok(());
        }
        match self.counterexample(index, data.len, guards) {
            Some(at) => {
                let message = format!("`{}[{index}]` is outside its {} elements{at}", data.name, data.len);
                Err(self.broken("L6", message))
            }
            None => Ok(()),
        }
    }

    /// What its iterations store must depend on which of them a parallel loop is in.
    fn parallel_store(&self, buffer: Buffer, index: &Index) -> Result<(), Error> {
        let Some(&(var, LoopKind::Parallel)) = self.loops.first() else { return Ok(()) };
        let data = &self.kernel.buffers[buffer];
        let guarded = self.assumed[1..].iter().any(|a| match a {
            Assumption::All(guards) | Assumption::NotAll(guards) => {
                guards.iter().any(|g| g.index.mentions(var) || !g.index.values().is_empty())
            }
            Assumption::Below(_, extent) => extent.mentions(var) || !extent.values().is_empty(),
        });
        let depends = index.mentions(var) || !index.values().is_empty() || guarded;
        match !data.role.is_param() || var.extent <= 1 || depends {
            true => Ok(()),
            false => {
                let message = format!("every iteration over {var} stores to `{}[{index}]`", data.name);
                Err(self.broken("L7", message))
            }
        }
    }

    fn vector(&self, lane: Var, body: &Block) -> Result<(), Error> {
        let mut stores: Vec<(Buffer, &Index)> = Vec::new();
        let mut loads: Vec<(Buffer, &Index)> = Vec::new();
        for stmt in body {
            match stmt {
                Stmt::Store { buffer, index, .. } => stores.push((*buffer, index)),
                Stmt::Let(Let { rhs: Rhs::Load { buffer, index, .. }, .. }) => loads.push((*buffer, index)),
                Stmt::Let(_) => {}
                Stmt::For { var, .. } => {
                    return Err(
                        self.broken("L8", format!("a loop over {var} in the vector loop over {lane}"))
                    );
                }
                Stmt::If { .. } => {
                    return Err(self.broken("L8", format!("an `if` in the vector loop over {lane}")));
                }
                Stmt::Prefetch { .. } => {
                    return Err(self.broken("L8", format!("a prefetch in the vector loop over {lane}")));
                }
            }
        }
        for (at, &(buffer, stored)) in stores.iter().enumerate() {
            let others = loads.iter().chain(&stores[at..]);
            for &(_, other) in others.filter(|(other, _)| *other == buffer) {
                if let Some((a, b)) = meeting_lanes(lane, stored, other) {
                    let name = &self.kernel.buffers[buffer].name;
                    let message = format!(
                        "lane {a} of {lane} stores to `{name}[{stored}]`, which is `{name}[{other}]` of lane {b}"
                    );
                    return Err(self.broken("L8", message));
                }
            }
        }
        Ok(())
    }

    /// An assignment of the open loops' variables under which every assumption holds and the index is
    /// not in `0..size`, as text. Indices with computed values are not tried.
    fn counterexample(&self, index: &Index, size: usize, guards: &[Guard]) -> Option<String> {
        if self.loops.iter().any(|(var, _)| var.extent == 0) || !index.values().is_empty() {
            return None;
        }
        let mut vars: Vec<Var> = self.loops.iter().map(|(var, _)| *var).collect();
        vars.retain(|v| v.extent > 1);
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let corners = 1usize.checked_shl(vars.len() as u32).unwrap_or(usize::MAX);
        for attempt in 0..TRIES {
            let mut values: SmallVec<[i64; 8]> = SmallVec::new();
            for (k, var) in vars.iter().enumerate() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let value = match attempt < corners && k < 63 {
                    true => (attempt >> k & 1) * (var.extent - 1),
                    false => (state >> 33) as usize % var.extent,
                };
                values.push(value as i64);
            }
            let at = |var: Var| vars.iter().position(|v| *v == var).map_or(0, |k| values[k]);
            let eval = |index: &Index| index.eval(&at, &|_| 0);
            let holds = |guard: &Guard| {
                guard.index.values().is_empty() && (eval(&guard.index) as u64) < guard.size as u64
            };
            let unknown = |guards: &[Guard]| guards.iter().any(|g| !g.index.values().is_empty());
            let value = eval(index);
            if value >= 0 && (value as u64) < size as u64 {
                continue;
            }
            let reached = guards.iter().all(holds)
                && self.assumed.iter().all(|assumption| match assumption {
                    Assumption::All(guards) => guards.iter().all(holds),
                    Assumption::NotAll(guards) => !unknown(guards) && !guards.iter().all(holds),
                    Assumption::Below(var, extent) => extent.values().is_empty() && at(*var) < eval(extent),
                });
            if reached {
                let found: Vec<String> =
                    vars.iter().zip(&values).map(|(v, x)| format!("{v} = {x}")).collect();
                return Some(match found.is_empty() {
                    true => String::new(),
                    false => format!(" where {}", found.join(", ")),
                });
            }
        }
        None
    }
}

/// Two lanes for which the one's first index is the other's second index, if that can be told.
fn meeting_lanes(lane: Var, stored: &Index, other: &Index) -> Option<(i64, i64)> {
    let lanes = lane.extent as i64;
    if lanes <= 1 {
        return None;
    }
    // first * x + c = second * y + d, all else being equal.
    let (first, second) = (stored.coefficient(lane)?, other.coefficient(lane)?);
    if first != 0 && stored == other {
        return None;
    }
    let without = |index: &Index, c: i64| index.sub(&Index::var(lane).mul(c));
    let apart = without(other, second).sub(&without(stored, first)).as_constant()?;
    if first == second {
        let distance = match first {
            0 if apart == 0 => 1,
            0 => return None,
            _ if apart % first == 0 => apart / first,
            _ => return None,
        };
        let meets = distance != 0 && distance.abs() < lanes;
        return meets.then_some(if distance > 0 { (distance, 0) } else { (0, -distance) });
    }
    (0..lanes.min(64))
        .flat_map(|x| (0..lanes.min(64)).map(move |y| (x, y)))
        .find(|&(x, y)| x != y && first.wrapping_mul(x) == second.wrapping_mul(y).wrapping_add(apart))
}

#[cfg(test)]
mod tests;
