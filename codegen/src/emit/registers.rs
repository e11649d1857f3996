//! Register buffers as SSA values.
//!
//! A buffer that some vector loop walks with stride 1 is kept as whole vectors, any other as scalars.
//! A loop carries the buffers that its body writes as block parameters, unless the buffer lives within
//! one iteration: all of its accesses are in the body, and there it is written before it is read.

use std::cell::OnceCell;
use std::rc::Rc;

use cranelift_entity::packed_option::PackedOption;
use cranelift_entity::{EntityRef, SecondaryMap};
use windlass_ir::DType;
use windlass_ir::loops::{Block, Buffer, Index, Kernel, LoopKind, Role, Stmt, Var, visit_accesses};

use super::{Emitter, Machine, elements, scalar_type};
use crate::error::Error;
use crate::ssa::{Op, Type, Value};

/// A loop of at most this many iterations is written out if register indices ask for it.
pub(super) const WRITTEN_OUT: usize = 1024;

/// The values of a register buffer.
#[derive(Clone, Debug)]
pub(super) struct RegisterFile {
    pub ty: Type,
    pub chunks: Vec<PackedOption<Value>>,
    /// Whether each element is ever read, once that was asked.
    read: OnceCell<Vec<bool>>,
}

impl RegisterFile {
    pub fn new(kernel: &Kernel, buffer: Buffer, machine: Machine) -> RegisterFile {
        let data = &kernel.buffers[buffer];
        let wide = machine.vector_bytes > 0 && data.dtype != DType::Bool && is_walked(&kernel.body, buffer);
        let ty = if wide { machine.vector_type(data.dtype) } else { scalar_type(data.dtype) };
        let chunks = vec![PackedOption::default(); data.len.div_ceil(ty.lanes())];
        RegisterFile { ty, chunks, read: OnceCell::new() }
    }

    /// Elements per value.
    pub fn lanes(&self) -> usize {
        self.ty.lanes()
    }
}

/// Whether a vector loop in the block steps through the buffer one element a lane.
fn is_walked(block: &Block, buffer: Buffer) -> bool {
    block.iter().any(|stmt| match stmt {
        Stmt::For { var, kind: LoopKind::Vector, body, .. } => {
            let mut walked = false;
            visit_accesses(body, &mut |b, index, _| {
                walked |= b == buffer && index.coefficient(*var) == Some(1);
            });
            walked
        }
        Stmt::For { body, .. } => is_walked(body, buffer),
        Stmt::If { then, otherwise, .. } => is_walked(then, buffer) || is_walked(otherwise, buffer),
        Stmt::Let(_) | Stmt::Store { .. } | Stmt::Prefetch { .. } => false,
    })
}

/// About how many instructions a block is, if it is a straight line once loops of constant extent that
/// are not serial are written out.
pub(super) fn straight_length(block: &Block) -> Option<usize> {
    block.iter().try_fold(0usize, |length, stmt| {
        let more = match stmt {
            Stmt::Let(_) | Stmt::Store { .. } | Stmt::Prefetch { .. } => 1,
            Stmt::If { .. } | Stmt::For { kind: LoopKind::Serial | LoopKind::Parallel, .. } => return None,
            Stmt::For { extent, kind, body, .. } => {
                let count = usize::try_from(extent.as_constant()?).ok()?;
                let copies = if *kind == LoopKind::Vector { count.div_ceil(4) } else { count };
                straight_length(body)?.saturating_mul(copies)
            }
        };
        Some(length.saturating_add(more))
    })
}

/// Adds the accesses in a block to each buffer's count.
pub(super) fn count_accesses(block: &Block, counts: &mut SecondaryMap<Buffer, u32>) {
    visit_accesses(block, &mut |buffer, _, _| counts[buffer] += 1);
}

/// The register buffers that blocks write.
#[derive(Debug)]
pub(super) struct Carried {
    /// Those whose values flow in or out.
    pub flowing: Vec<Buffer>,
    /// Those that live in there only.
    pub own: Vec<Buffer>,
}

impl<'k> Emitter<'k> {
    /// The register buffers that the block of a loop or the two of a branch write.
    pub(super) fn carried(&mut self, blocks: &[&'k Block]) -> Rc<Carried> {
        let first = std::ptr::from_ref(blocks[0]);
        if let Some(known) = self.carried.get(&first) {
            return known.clone();
        }
        let carried = Rc::new(self.find_carried(blocks));
        self.carried.insert(first, carried.clone());
        carried
    }

    fn find_carried(&self, blocks: &[&Block]) -> Carried {
        let mut counts: SecondaryMap<Buffer, u32> = SecondaryMap::new();
        let mut stored: Vec<Buffer> = Vec::new();
        for block in blocks {
            visit_accesses(block, &mut |buffer, _, write| {
                counts[buffer] += 1;
                if write && self.kernel.buffers[buffer].role == Role::Register {
                    stored.push(buffer);
                }
            });
        }
        stored.sort_unstable_by_key(|b| b.index());
        stored.dedup();
        let (flowing, own) = stored.into_iter().partition(|&buffer| {
            // A side of a branch does without what only the other one reads.
            let kills = |block: &Block| match blocks.len() {
                1 => elements::kills(block, buffer, self.read(buffer)),
                _ => {
                    let read = elements::read(block, buffer, self.kernel.buffers[buffer].len);
                    elements::kills(block, buffer, &read)
                }
            };
            counts[buffer] != self.accesses[buffer] || !blocks.iter().all(|block| kills(block))
        });
        Carried { flowing, own }
    }

    /// Whether a block indexes a register buffer by this variable.
    pub(super) fn needs_constants(&self, var: Var, block: &Block) -> bool {
        let mut found = false;
        visit_accesses(block, &mut |buffer, index, _| {
            found |= self.kernel.buffers[buffer].role == Role::Register && index.mentions(var);
        });
        found
    }

    /// How many iterations to write out at once in a loop that carries a register tile. Each iteration
    /// leaves the tile in other registers than it found it in (the fused multiply-add overwrites a
    /// factor, not the sum), so going round costs a move per vector of the tile. Eight rounds measured no faster
    /// than four (`cargo bench --bench products`).
    pub(super) fn rounds_at_once(&mut self, body: &'k Block) -> i64 {
        let at_once = match straight_length(body) {
            Some(0..=160) => 4,
            Some(161..=400) => 2,
            Some(_) | None => return 1,
        };
        let carried = self.carried(&[body]);
        let files = carried.flowing.iter().map(|b| &self.registers[b]).filter(|file| file.lanes() > 1);
        let vectors: usize = files.map(|file| file.chunks.len()).sum();
        if vectors > 1 { at_once } else { 1 }
    }

    /// The values of a register buffer.
    pub(super) fn chunks(&mut self, buffer: Buffer) -> &mut Vec<PackedOption<Value>> {
        &mut self.registers.get_mut(&buffer).expect("every register buffer has a file").chunks
    }

    /// Ends the life of a register buffer's values.
    pub(super) fn forget(&mut self, buffer: Buffer) {
        self.chunks(buffer).fill(PackedOption::default());
    }

    /// Whether each element of a register buffer is ever read.
    fn read(&self, buffer: Buffer) -> &[bool] {
        let len = self.kernel.buffers[buffer].len;
        self.registers[&buffer].read.get_or_init(|| elements::read(&self.kernel.body, buffer, len))
    }

    /// Part of a register buffer; zero if nothing was written yet.
    pub(super) fn chunk_or_zero(&mut self, buffer: Buffer, at: usize) -> Value {
        let RegisterFile { ty, chunks, .. } = &self.registers[&buffer];
        match chunks[at].expand() {
            Some(value) => value,
            None => self.bits(0, *ty),
        }
    }

    /// The constant position of a register access.
    pub(super) fn register_position(&mut self, buffer: Buffer, index: &Index) -> Result<usize, Error> {
        let name = &self.kernel.buffers[buffer].name;
        let len = self.kernel.buffers[buffer].len;
        match self.index(index)? {
            super::Number::Known(at) if at >= 0 && (at as usize) < len => Ok(at as usize),
            super::Number::Known(at) => self.error(format!("element {at} of register buffer `{name}`")),
            super::Number::Value(_) => {
                self.error(format!("register buffer `{name}` is indexed by {index}, which is not a constant"))
            }
        }
    }

    pub(super) fn read_register(&mut self, buffer: Buffer, at: usize) -> Value {
        let lanes = self.registers[&buffer].lanes();
        let chunk = self.chunk_or_zero(buffer, at / lanes);
        match lanes {
            1 => chunk,
            _ => self.at(self.top_index(), Op::Extract((at % lanes) as u8), &[chunk]),
        }
    }

    pub(super) fn write_register(&mut self, buffer: Buffer, at: usize, value: Value) {
        let lanes = self.registers[&buffer].lanes();
        let value = match lanes {
            1 => value,
            _ => {
                let chunk = self.chunk_or_zero(buffer, at / lanes);
                self.at(self.top_index(), Op::Insert((at % lanes) as u8), &[chunk, value])
            }
        };
        self.chunks(buffer)[at / lanes] = value.into();
    }

    /// `count` elements from a position on, in the low lanes of a vector.
    pub(super) fn read_register_lanes(&mut self, buffer: Buffer, at: usize, count: usize) -> Value {
        let lanes = self.registers[&buffer].lanes();
        let within = at % lanes;
        if within + count <= lanes {
            let chunk = self.chunk_or_zero(buffer, at / lanes);
            return match within {
                0 => chunk,
                _ => self.at(self.top_index(), Op::Drop(within as u8), &[chunk]),
            };
        }
        let elements: Vec<Value> = (at..at + count).map(|i| self.read_register(buffer, i)).collect();
        self.gather_lanes(self.machine.vector_type(self.kernel.buffers[buffer].dtype), &elements)
    }

    /// Writes the low lanes of a vector from a position on.
    pub(super) fn write_register_lanes(&mut self, buffer: Buffer, at: usize, count: usize, value: Value) {
        let lanes = self.registers[&buffer].lanes();
        let top = self.top_index();
        if at.is_multiple_of(lanes) && count <= lanes {
            let chunk = at / lanes;
            let rest = || self.read(buffer).iter().take((chunk + 1) * lanes).skip(at + count);
            let value = match self.registers[&buffer].chunks[chunk].expand() {
                Some(old) if count < lanes && rest().any(|read| *read) => {
                    self.at(top, Op::Merge { at: 0, count: count as u8 }, &[value, old])
                }
                _ => value,
            };
            self.chunks(buffer)[chunk] = value.into();
            return;
        }
        let bytes = count * self.kernel.buffers[buffer].dtype.size();
        if matches!(bytes, 16 | 32) && lanes.is_multiple_of(count) && at.is_multiple_of(count) {
            let old = self.chunk_or_zero(buffer, at / lanes);
            let op = Op::Merge { at: (at % lanes) as u8, count: count as u8 };
            self.chunks(buffer)[at / lanes] = self.at(top, op, &[value, old]).into();
            return;
        }
        for lane in 0..count {
            let element = self.at(top, Op::Extract(lane as u8), &[value]);
            self.write_register(buffer, at + lane, element);
        }
    }

    /// A vector whose low lanes are these scalars.
    pub(super) fn gather_lanes(&mut self, ty: Type, elements: &[Value]) -> Value {
        let region = self.hoisted(elements);
        if elements.iter().all(|element| *element == elements[0]) {
            return self.cached(region, Op::Splat, ty, &elements[..1]);
        }
        self.typed(region, Op::Lanes, ty, elements)
    }

    /// A constant of any type by the bits of one lane.
    pub(super) fn bits(&mut self, bits: u64, ty: Type) -> Value {
        let region = self.constant_region();
        self.bits_at(region, bits, ty)
    }

    /// A constant for code in a region that may be further out than the current one.
    pub(super) fn bits_for(&mut self, region: usize, bits: u64, ty: Type) -> Value {
        self.bits_at(self.constant_region().min(region), bits, ty)
    }

    pub(super) fn bits_at(&mut self, region: usize, bits: u64, ty: Type) -> Value {
        let bits = bits & (u64::MAX >> (64 - ty.lane_bits()));
        self.cached(region, Op::Const(bits), ty, &[])
    }
}
