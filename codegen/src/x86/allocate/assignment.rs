//! Where every virtual register is, once that is settled.

use fixedbitset::FixedBitSet;
use regalloc2::{Allocation, PReg, RegClass, SpillSlot, VReg};

use super::live::{Point, Range};

/// Where a virtual register is at a point.
#[derive(Clone, Copy)]
struct Spot {
    /// The register or the place on the stack.
    allocation: Allocation,
    /// Whether it is in a register for one instruction only, loaded before or stored behind it.
    fleeting: bool,
}

/// A stretch of a virtual register that is split, in a register.
#[derive(Clone, Copy)]
pub struct Stretch {
    pub register: VReg,
    pub range: Range,
    /// The loop whose entries load it, or none if that is a single instruction's business.
    pub round: Option<usize>,
    pub allocation: Allocation,
}

/// Where every virtual register is.
pub struct Assignment {
    /// Of each virtual register that is whole, its register.
    pub whole: Vec<Option<PReg>>,
    /// Of each virtual register that is split, its place on the stack.
    pub stack: Vec<Option<SpillSlot>>,
    /// What of those is in registers, by virtual register and range.
    pub stretches: Vec<Stretch>,
    /// The points where each register is in use.
    pub busy: Vec<(PReg, FixedBitSet)>,
    /// The places on the stack, in words of 8 bytes.
    pub slots: usize,
}

impl Assignment {
    /// Where an instruction finds or leaves a virtual register, and where it is besides what single instructions want of
    /// it.
    pub fn place(&self, register: VReg, point: Point) -> (Allocation, Allocation) {
        let spot = self.at(register, point);
        (spot.allocation, self.home_of(register, spot))
    }

    fn at(&self, register: VReg, point: Point) -> Spot {
        if let Some(whole) = self.whole[register.vreg()] {
            return Spot { allocation: Allocation::reg(whole), fleeting: false };
        }
        let behind = self.stretches.partition_point(|s| (s.register, s.range.start) <= (register, point));
        match behind.checked_sub(1).map(|at| self.stretches[at]) {
            Some(s) if s.register == register && s.range.contains(point) => {
                Spot { allocation: s.allocation, fleeting: s.round.is_none() }
            }
            _ => Spot { allocation: self.stored(register), fleeting: false },
        }
    }

    /// The place on the stack of a virtual register that is split.
    fn stored(&self, register: VReg) -> Allocation {
        self.stack[register.vreg()].map_or(Allocation::none(), Allocation::stack)
    }

    /// Where a virtual register is besides what single instructions want of it.
    pub fn home(&self, register: VReg, point: Point) -> Allocation {
        self.home_of(register, self.at(register, point))
    }

    fn home_of(&self, register: VReg, spot: Spot) -> Allocation {
        if spot.fleeting { self.stored(register) } else { spot.allocation }
    }

    /// A register in which nothing is at any of these points.
    pub fn idle(&self, class: RegClass, points: &[Point], except: impl Fn(PReg) -> bool) -> Option<PReg> {
        let idle = |busy: &FixedBitSet| points.iter().all(|&point| !busy.contains(point));
        let found = self.busy.iter().find(|(r, busy)| r.class() == class && !except(*r) && idle(busy));
        found.map(|(register, _)| *register)
    }

    /// A new place on the stack.
    pub fn add_slot(&mut self, words: usize) -> SpillSlot {
        self.slots += words;
        SpillSlot::new(self.slots - words)
    }
}
