//! The loop interpreter: runs kernels and programs, bit for bit as generated code must.
//!
//! A kernel is first [prepared](Prepared): functions are expanded to primitive ones, loop variables
//! and values get slots, and indices become sums over slots. Running checks every access against its
//! buffer, so a wrong index is an [`Error::Run`] and not a wrong result.
//!
//! Values keep the bits they were given. A bool read from memory is whether its byte is not 0. What
//! a local buffer holds before it is written is not part of a kernel's meaning; here it is a pattern
//! that stands out.

mod program;

use cranelift_entity::EntityRef;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::machine::{MachineFn, machine_fn};
use super::{Atom, Block, Guard, Index, Kernel, LoopKind, Rhs, Stmt, Val};
use crate::dtype::DType;
use crate::error::Error;

pub use program::run_program;

/// Memory that arguments lie in.
#[derive(Debug)]
pub enum Region<'a> {
    /// Memory that kernels only read.
    Read(&'a [u8]),
    /// Memory that kernels read and write.
    Write(&'a mut [u8]),
}

impl Region<'_> {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Region::Read(bytes) => bytes,
            Region::Write(bytes) => bytes,
        }
    }
}

/// Where an argument starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Argument {
    /// Which region.
    pub region: usize,
    /// The byte in it.
    pub offset: usize,
}

/// The order in which parallel and vector loops run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// From the first iteration to the last.
    #[default]
    Forward,
    /// From the last to the first. A kernel that gives other bits then breaks its promise.
    Backward,
}

/// Runs a kernel on its parameters' buffers, in order.
pub fn run_kernel(kernel: &Kernel, args: &mut [Region<'_>]) -> Result<(), Error> {
    let places: Vec<Argument> = (0..args.len()).map(|region| Argument { region, offset: 0 }).collect();
    Prepared::new(kernel)?.run(args, &places, Order::Forward)
}

/// What local buffers and the arena hold at first.
const POISON: u8 = 0xa5;

/// A kernel made ready to run.
#[derive(Clone, Debug)]
pub struct Prepared {
    name: String,
    buffers: Vec<Storage>,
    /// What every slot holds at first: constants, else 0.
    slots: Vec<u64>,
    /// Bytes of all local buffers.
    local_bytes: usize,
    body: Vec<Step>,
}

/// A buffer: a parameter or a local, its element type and length.
#[derive(Clone, Debug)]
struct Storage {
    name: String,
    /// The parameter it is, or the byte among the locals where it starts.
    place: Result<usize, usize>,
    dtype: DType,
    len: usize,
}

/// A sum over slots.
#[derive(Clone, Debug)]
struct Position {
    constant: i64,
    /// Loop variables: slot and coefficient.
    direct: SmallVec<[(u32, i64); 3]>,
    others: Vec<(Part, i64)>,
}

#[derive(Clone, Debug)]
enum Part {
    Div(Position, i64),
    Mod(Position, i64),
    /// A computed value and the number of values it may take.
    Value(u32, usize),
}

#[derive(Clone, Debug)]
enum Step {
    For { var: u32, limit: usize, extent: Position, kind: LoopKind, body: Vec<Step> },
    If { guards: Vec<(Position, usize)>, then: Vec<Step>, otherwise: Vec<Step> },
    Load { to: u32, buffer: usize, index: Position, guards: Vec<(Position, usize)> },
    Store { buffer: usize, index: Position, from: u32 },
    Index { to: u32, index: Position },
    Inside { to: u32, guards: Vec<(Position, usize)> },
    Apply { to: u32, f: MachineFn, args: [u32; 3] },
}

impl Prepared {
    /// Expands, verifies and prepares a kernel.
    pub fn new(kernel: &Kernel) -> Result<Prepared, Error> {
        let kernel = &super::expand_kernel(kernel, super::Native::default());
        super::verify_kernel(kernel)?;
        let mut cx = Prepare { kernel, slots: vec![0; kernel.vals.len()], vars: FxHashMap::default() };
        let body = cx.block(&kernel.body)?;
        let (mut params, mut local_bytes) = (0, 0);
        let buffers = kernel
            .buffers
            .values()
            .map(|b| {
                let place = match b.role.is_param() {
                    true => Ok(params),
                    false => Err(local_bytes),
                };
                match place {
                    Ok(_) => params += 1,
                    Err(_) => local_bytes += b.len * b.dtype.size(),
                }
                Storage { name: b.name.clone(), place, dtype: b.dtype, len: b.len }
            })
            .collect();
        Ok(Prepared { name: kernel.name.clone(), buffers, slots: cx.slots, local_bytes, body })
    }

    /// Runs the kernel, its parameters being where `args` say.
    pub fn run(&self, regions: &mut [Region<'_>], args: &[Argument], order: Order) -> Result<(), Error> {
        let fail = |message: String| Error::Run { kernel: self.name.clone(), message };
        let count = self.buffers.iter().filter(|b| b.place.is_ok()).count();
        if args.len() != count {
            return Err(fail(format!("takes {count} arguments, found {}", args.len())));
        }
        for buffer in &self.buffers {
            let Ok(param) = buffer.place else { continue };
            let found = args[param];
            let bytes = regions.get(found.region).map_or(0, |r| r.bytes().len()).saturating_sub(found.offset);
            if bytes < buffer.len * buffer.dtype.size() {
                let (name, len) = (&buffer.name, buffer.len);
                return Err(fail(format!("`{name}` takes {len} {}, found {bytes} bytes", buffer.dtype)));
            }
        }
        let mut machine = Machine {
            prepared: self,
            regions,
            args,
            order,
            slots: self.slots.clone(),
            locals: vec![POISON; self.local_bytes],
        };
        machine.block(&self.body).map_err(fail)
    }
}

struct Prepare<'k> {
    kernel: &'k Kernel,
    slots: Vec<u64>,
    vars: FxHashMap<u32, u32>,
}

impl Prepare<'_> {
    fn block(&mut self, block: &Block) -> Result<Vec<Step>, Error> {
        let mut steps = Vec::with_capacity(block.len());
        for stmt in block {
            steps.extend(self.stmt(stmt)?);
        }
        Ok(steps)
    }

    fn stmt(&mut self, stmt: &Stmt) -> Result<Option<Step>, Error> {
        Ok(Some(match stmt {
            Stmt::For { var, extent, kind, body } => {
                let extent = self.position(extent)?;
                let slot = self.slots.len() as u32;
                self.slots.push(0);
                self.vars.insert(var.id, slot);
                let body = self.block(body)?;
                Step::For { var: slot, limit: var.extent, extent, kind: *kind, body }
            }
            Stmt::If { guards, then, otherwise } => Step::If {
                guards: self.guards(guards)?,
                then: self.block(then)?,
                otherwise: self.block(otherwise)?,
            },
            Stmt::Store { buffer, index, val } => {
                Step::Store { buffer: buffer.index(), index: self.position(index)?, from: slot_of(*val) }
            }
            Stmt::Prefetch { .. } => return Ok(None),
            Stmt::Let(definition) => {
                let to = slot_of(definition.val);
                match &definition.rhs {
                    Rhs::Const(bits) => {
                        let dtype = self.kernel.vals[definition.val];
                        self.slots[to as usize] = match dtype {
                            DType::Bool => u64::from(*bits != 0),
                            _ => *bits,
                        };
                        return Ok(None);
                    }
                    Rhs::Load { buffer, index, guards } => Step::Load {
                        to,
                        buffer: buffer.index(),
                        index: self.position(index)?,
                        guards: self.guards(guards)?,
                    },
                    Rhs::Index(index) => Step::Index { to, index: self.position(index)? },
                    Rhs::Inside(guards) => Step::Inside { to, guards: self.guards(guards)? },
                    Rhs::Apply(f, args) => {
                        let dtype = args.first().map(|&a| self.kernel.vals[a]);
                        let machine = dtype.and_then(|dtype| machine_fn(*f, dtype)).ok_or_else(|| {
                            let on = dtype.map_or("nothing", DType::name);
                            self.fail(format!("{f} on {on} is not a primitive function"))
                        })?;
                        let mut slots = [0; 3];
                        for (slot, &arg) in slots.iter_mut().zip(args) {
                            *slot = slot_of(arg);
                        }
                        Step::Apply { to, f: machine, args: slots }
                    }
                }
            }
        }))
    }

    fn fail(&self, message: String) -> Error {
        Error::Run { kernel: self.kernel.name.clone(), message }
    }

    fn guards(&self, guards: &[Guard]) -> Result<Vec<(Position, usize)>, Error> {
        guards.iter().map(|g| Ok((self.position(&g.index)?, g.size))).collect()
    }

    fn position(&self, index: &Index) -> Result<Position, Error> {
        let mut position = Position { constant: index.offset(), direct: SmallVec::new(), others: Vec::new() };
        for (atom, c) in index.terms() {
            let part = match atom {
                Atom::Var(var) => {
                    let slot = self.vars.get(&var.id);
                    let slot = *slot.ok_or_else(|| self.fail(format!("{var} is used outside its loop")))?;
                    position.direct.push((slot, *c));
                    continue;
                }
                Atom::Div(x, d) => Part::Div(self.position(x)?, *d),
                Atom::Mod(x, d) => Part::Mod(self.position(x)?, *d),
                Atom::Value(val, extent) => Part::Value(slot_of(*val), *extent),
            };
            position.others.push((part, *c));
        }
        Ok(position)
    }
}

fn slot_of(val: Val) -> u32 {
    val.as_u32()
}

/// The state of a running kernel.
struct Machine<'r, 'm> {
    prepared: &'r Prepared,
    regions: &'r mut [Region<'m>],
    args: &'r [Argument],
    order: Order,
    slots: Vec<u64>,
    locals: Vec<u8>,
}

impl Machine<'_, '_> {
    fn block(&mut self, steps: &[Step]) -> Result<(), String> {
        for step in steps {
            match step {
                Step::Apply { to, f, args: [a, b, c] } => {
                    let at = |slot: u32| self.slots[slot as usize];
                    self.slots[*to as usize] = f(at(*a), at(*b), at(*c));
                }
                Step::Load { to, buffer, index, guards } => {
                    self.slots[*to as usize] = match self.all(guards)? {
                        true => self.load(*buffer, self.position(index)?)?,
                        false => 0,
                    };
                }
                Step::Store { buffer, index, from } => {
                    self.store(*buffer, self.position(index)?, self.slots[*from as usize])?;
                }
                Step::For { var, limit, extent, kind, body } => {
                    self.repeat(*var, *limit, extent, *kind, body)?;
                }
                Step::If { guards, then, otherwise } => {
                    let body = if self.all(guards)? { then } else { otherwise };
                    self.block(body)?;
                }
                Step::Index { to, index } => self.slots[*to as usize] = self.position(index)? as u64,
                Step::Inside { to, guards } => self.slots[*to as usize] = u64::from(self.all(guards)?),
            }
        }
        Ok(())
    }

    fn repeat(
        &mut self,
        var: u32,
        limit: usize,
        extent: &Position,
        kind: LoopKind,
        body: &[Step],
    ) -> Result<(), String> {
        let count = self.position(extent)?.max(0) as u64;
        if count > limit as u64 {
            return Err(format!("a loop runs {count} times, its variable takes {limit} values"));
        }
        for i in 0..count {
            self.slots[var as usize] = match (kind, self.order) {
                (LoopKind::Parallel | LoopKind::Vector, Order::Backward) => count - 1 - i,
                _ => i,
            };
            if kind == LoopKind::Parallel {
                self.locals.fill(POISON);
            }
            self.block(body)?;
        }
        Ok(())
    }

    fn all(&self, guards: &[(Position, usize)]) -> Result<bool, String> {
        for (position, size) in guards {
            // A negative position is past any size when read as unsigned.
            if self.position(position)? as u64 >= *size as u64 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn position(&self, position: &Position) -> Result<i64, String> {
        let mut sum = position.constant;
        for &(slot, c) in &position.direct {
            sum = sum.wrapping_add((self.slots[slot as usize] as i64).wrapping_mul(c));
        }
        for (part, c) in &position.others {
            let x = match part {
                Part::Div(x, d) => self.position(x)?.div_euclid(*d),
                Part::Mod(x, d) => self.position(x)?.rem_euclid(*d),
                Part::Value(slot, extent) => {
                    let x = self.slots[*slot as usize];
                    if x >= *extent as u64 {
                        return Err(format!("v{slot} is {}, which is not in 0..{extent}", x as i64));
                    }
                    x as i64
                }
            };
            sum = sum.wrapping_add(x.wrapping_mul(*c));
        }
        Ok(sum)
    }

    fn outside(&self, buffer: usize, at: i64) -> String {
        let Storage { name, len, .. } = &self.prepared.buffers[buffer];
        format!("element {at} of `{name}`, which has {len}")
    }

    fn load(&self, buffer: usize, at: i64) -> Result<u64, String> {
        let storage = &self.prepared.buffers[buffer];
        if at as u64 >= storage.len as u64 {
            return Err(self.outside(buffer, at));
        }
        let start = at as usize * storage.dtype.size();
        let bytes = match storage.place {
            Ok(param) => &self.regions[self.args[param].region].bytes()[self.args[param].offset + start..],
            Err(local) => &self.locals[local + start..],
        };
        Ok(match storage.dtype.size() {
            1 if storage.dtype == DType::Bool => u64::from(bytes[0] != 0),
            1 => u64::from(bytes[0]),
            2 => u64::from(u16::from_ne_bytes([bytes[0], bytes[1]])),
            4 => u64::from(u32::from_ne_bytes(bytes[..4].try_into().expect("four bytes"))),
            _ => u64::from_ne_bytes(bytes[..8].try_into().expect("eight bytes")),
        })
    }

    fn store(&mut self, buffer: usize, at: i64, bits: u64) -> Result<(), String> {
        let storage = &self.prepared.buffers[buffer];
        if at as u64 >= storage.len as u64 {
            return Err(self.outside(buffer, at));
        }
        let start = at as usize * storage.dtype.size();
        let bytes = match storage.place {
            Ok(param) => match &mut self.regions[self.args[param].region] {
                Region::Write(bytes) => &mut bytes[self.args[param].offset + start..],
                Region::Read(_) => {
                    return Err(format!("`{}` lies in memory that is only read", storage.name));
                }
            },
            Err(local) => &mut self.locals[local + start..],
        };
        match storage.dtype.size() {
            1 => bytes[0] = bits as u8,
            2 => bytes[..2].copy_from_slice(&(bits as u16).to_ne_bytes()),
            4 => bytes[..4].copy_from_slice(&(bits as u32).to_ne_bytes()),
            _ => bytes[..8].copy_from_slice(&bits.to_ne_bytes()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
