//! The shape of code: all that the choice of registers depends on. Immediates and displacements are no part of it, so
//! kernels that differ in sizes and strides alone, as those of one network often do, share what was chosen for one of
//! them.

use std::hash::Hash;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use regalloc2::{Function, Inst, Output};
use rustc_hash::FxHashMap;

use super::Code;

/// A function's blocks and operands, spelled out in words. Equal shapes get equal registers.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Shape(Vec<u64>);

impl Shape {
    fn of(code: &Code) -> Shape {
        let Code { insts, lines: _, blocks, registers, vector_bytes, masks: _ } = code;
        let mut words = Vec::with_capacity(4 * insts.len() + 8 * blocks.len() + 3);
        words.extend([*registers as u64, *vector_bytes as u64, blocks.len() as u64]);
        // Where a block comes from follows from where all go on.
        for super::BlockData { range, params, targets, successors: _, predecessors: _ } in blocks {
            words.extend([(range.1 - range.0) as u64, params.len() as u64, targets.len() as u64]);
            words.extend(params.iter().map(|param| param.bits() as u64));
            for (block, args) in targets {
                words.extend([block.index() as u64, args.len() as u64]);
                words.extend(args.iter().map(|arg| arg.bits() as u64));
            }
        }
        for inst in (0..insts.len()).map(Inst::new) {
            let operands = code.inst_operands(inst);
            words.push(operands.len() as u64);
            words.extend(operands.iter().map(|operand| operand.bits()));
        }
        Shape(words)
    }
}

/// Registers by the shape of code, shared by the threads that compile.
#[derive(Debug, Default)]
pub struct Allocations(Mutex<FxHashMap<Shape, Arc<OnceLock<Chosen>>>>);

/// The registers, or why there are none.
type Chosen = Result<Arc<Output>, String>;

impl Allocations {
    /// The registers for code, from `choose` unless code of its shape had them before. A thread that asks for what
    /// another is choosing waits for it.
    pub fn obtain(&self, code: &Code, choose: impl FnOnce() -> Result<Output, String>) -> Chosen {
        let shape = Shape::of(code);
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(shape).or_default().clone();
        slot.get_or_init(|| choose().map(Arc::new)).clone()
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::Code::*;
    use regalloc2::{RegClass, VReg};

    use super::super::{BlockData, allocate};
    use super::*;
    use crate::x86::inst::{Arg, Base, Imm, Inst, Machine, Mem, Width};

    /// `a = value; b = [a + offset]; [b] = operand`, the latter one of the two.
    fn code(value: u64, offset: i32, stores: usize) -> Code {
        let registers = [0, 1].map(|at| VReg::new(at, RegClass::Int));
        let memory = |base, offset| Arg::Mem(Mem { base: Base::Reg(base), index: None, offset });
        let [a, b] = registers;
        let machine = |code, args: &[Arg]| Inst::Machine(Machine::new(code, args));
        let insts = vec![
            Inst::Params([].into_iter().collect()),
            machine(Mov_r64_imm64, &[Arg::Def(a, Width::B8), Arg::Imm(Imm::Quad(value))]),
            machine(Mov_r64_rm64, &[Arg::Def(b, Width::B8), memory(a, offset)]),
            machine(Mov_rm64_r64, &[memory(b, 0), Arg::Use(registers[stores], Width::B8)]),
            Inst::Return,
        ];
        let lines = vec![Default::default(); insts.len()];
        let blocks = vec![BlockData { range: (0, insts.len()), ..BlockData::default() }];
        Code { insts, lines, blocks, registers: 2, vector_bytes: 32, masks: Vec::new() }
    }

    #[test]
    fn numbers_are_no_part_of_a_shape_and_registers_are() {
        let first = Shape::of(&code(1, 8, 0));
        assert_eq!(first, Shape::of(&code(2, 4096, 0)));
        assert_ne!(first, Shape::of(&code(1, 8, 1)));
    }

    #[test]
    fn registers_are_chosen_once_for_a_shape() {
        let known = Allocations::default();
        let first = allocate(&code(1, 8, 0), &known).unwrap();
        assert!(Arc::ptr_eq(&first, &allocate(&code(2, 16, 0), &known).unwrap()));
        assert!(!Arc::ptr_eq(&first, &allocate(&code(1, 8, 1), &known).unwrap()));
    }
}
