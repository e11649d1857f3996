//! Registers that can be one: what a loop carries round and what it carries in, a sum and what is added to.

use regalloc2::{Function, Inst, OperandKind, RegClass, VReg};
use smallvec::{SmallVec, smallvec};

use super::Code;
use super::live::{Live, Range, Ranges, copied, disjoint_union, reads};

/// Virtual registers that never hold different values at once.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// Where any of them is live.
    pub ranges: Ranges,
    pub class: RegClass,
    /// Which they are.
    pub members: SmallVec<[VReg; 4]>,
}

/// All virtual registers in bundles, so that few copies are left.
pub struct Bundles {
    pub all: Vec<Bundle>,
    /// The bundle of each virtual register.
    of: Vec<usize>,
}

impl Bundles {
    pub fn of(code: &Code, live: &Live) -> Bundles {
        let mut bundles =
            Bundles { all: Vec::with_capacity(code.registers), of: vec![usize::MAX; code.registers] };
        for block in &code.blocks {
            block.params.iter().for_each(|&param| bundles.add(param, live));
            for inst in block.range.0..block.range.1 {
                let results =
                    code.inst_operands(Inst::new(inst)).iter().filter(|o| o.kind() == OperandKind::Def);
                results.for_each(|result| bundles.add(result.vreg(), live));
            }
        }
        bundles.instructions(code);
        bundles.edges(code, live);
        bundles
    }

    /// Makes results the registers of the operands that they start as copies of. A result that cannot be is live from
    /// where its instruction reads, for it must not be where the instruction's other operands are.
    fn instructions(&mut self, code: &Code) {
        for inst in 0..code.insts.len() {
            let operands = code.inst_operands(Inst::new(inst));
            for operand in operands {
                let Some(from) = copied(*operand) else { continue };
                let to = operand.vreg();
                if !self.join(operands[from].vreg(), to) {
                    start_earlier(&mut self.all[self.of[to.vreg()]].ranges, inst);
                }
            }
        }
    }

    /// Makes parameters of blocks the registers of their arguments, the innermost loops' first.
    fn edges(&mut self, code: &Code, live: &Live) {
        let mut pairs: Vec<(f32, VReg, VReg)> = Vec::new();
        for (block, &frequency) in code.blocks.iter().zip(&live.frequencies) {
            for (target, args) in &block.targets {
                let params = &code.blocks[target.index()].params;
                pairs.extend(args.iter().zip(params).map(|(&arg, &param)| (frequency, arg, param)));
            }
        }
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (_, arg, param) in pairs {
            self.join(arg, param);
        }
    }

    fn add(&mut self, register: VReg, live: &Live) {
        self.of[register.vreg()] = self.all.len();
        let ranges = Ranges::from_slice(&live.ranges[register.vreg()]);
        self.all.push(Bundle { ranges, class: register.class(), members: smallvec![register] });
    }

    /// Makes two registers' bundles one, unless both are live at once.
    fn join(&mut self, a: VReg, b: VReg) -> bool {
        let (mut kept, mut joined) = (self.of[a.vreg()], self.of[b.vreg()]);
        if kept == joined {
            return true;
        }
        if self.all[kept].members.len() < self.all[joined].members.len() {
            std::mem::swap(&mut kept, &mut joined);
        }
        let Some(union) = disjoint_union(&self.all[kept].ranges, &self.all[joined].ranges) else {
            return false;
        };
        let members = std::mem::take(&mut self.all[joined].members);
        members.iter().for_each(|member| self.of[member.vreg()] = kept);
        self.all[joined].ranges.clear();
        self.all[kept].ranges = union;
        self.all[kept].members.extend(members);
        true
    }
}

/// A register of its own that starts as a copy is live from where its instruction reads.
pub fn start_earlier(ranges: &mut Ranges, inst: usize) {
    if let Some(first) = ranges.first_mut() {
        *first = Range { start: first.start.min(reads(inst)), ..*first };
    }
}
