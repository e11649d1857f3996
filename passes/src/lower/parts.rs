//! Kernels of several parts, each of which was a unit.

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};

use rustc_hash::{FxHashMap, FxHasher};
use windlass_ir::loops::{Buffer, Kernel, KernelBuilder, Role};
use windlass_ir::{DType, Shape};

use super::parallel;
use super::units::{Buf, Unit, UnitWork, Units};

/// The buffers that a kernel of several parts reads, each once.
#[derive(Clone)]
pub struct Operands {
    /// The buffers.
    pub bufs: Vec<Buf>,
    /// Of each part which of them its operands are, but for that which the kernel makes itself.
    pub places: Vec<Vec<Option<usize>>>,
}

impl Operands {
    /// Of what each part reads, and which of it the kernel makes.
    pub fn of<'b>(parts: impl IntoIterator<Item = (&'b [Buf], Option<usize>)>) -> Operands {
        let mut bufs: Vec<Buf> = Vec::new();
        let mut place = |buf: Buf| {
            bufs.iter().position(|&b| b == buf).unwrap_or_else(|| {
                bufs.push(buf);
                bufs.len() - 1
            })
        };
        let of_part = |(ins, made): (&[Buf], Option<usize>)| {
            ins.iter().enumerate().map(|(i, &buf)| (made != Some(i)).then(|| place(buf))).collect()
        };
        let places = parts.into_iter().map(of_part).collect();
        Operands { bufs, places }
    }

    /// The kernel's parameters for them, part by part.
    pub fn params(&self, builder: &mut KernelBuilder, units: &Units) -> Vec<Vec<Option<Buffer>>> {
        let param = |(number, &buf): (usize, &Buf)| {
            let data = &units.bufs[buf];
            builder.buffer(&format!("x{number}"), data.dtype, data.elements(), Role::In)
        };
        let params: Vec<Buffer> = self.bufs.iter().enumerate().map(param).collect();
        let of_part = |places: &Vec<Option<usize>>| places.iter().map(|at| at.map(|at| params[at])).collect();
        self.places.iter().map(of_part).collect()
    }
}

/// Units that are joined, each few to one kernel, planned by `P`. Kernels are made in the end, all at once; parts that are
/// alike have one, for models repeat their layers.
pub struct Joining<P> {
    /// What was looked at, with the number of the plan if there is one.
    seen: FxHashMap<u64, Vec<(Parts, Option<usize>)>>,
    /// The plans that differ, with what the first of each reads.
    plans: Vec<(P, Operands)>,
    joined: Vec<Joined>,
    /// The numbers of all units that are joined.
    taken: BTreeSet<usize>,
}

/// The numbers of units that become one, the last of them; what that reads; and the number of its plan.
struct Joined {
    numbers: Vec<usize>,
    operands: Operands,
    plan: usize,
}

/// What the outcome depends on: what each part does, to which of the operands, and what its buffers are.
#[derive(PartialEq)]
struct Parts {
    works: Vec<UnitWork>,
    places: Vec<Vec<Option<usize>>>,
    bufs: Vec<(DType, Shape)>,
}

impl<P: Sync> Joining<P> {
    /// Nothing yet.
    pub fn new() -> Joining<P> {
        Joining { seen: FxHashMap::default(), plans: Vec::new(), joined: Vec::new(), taken: BTreeSet::new() }
    }

    /// Whether a unit is joined to others.
    pub fn has(&self, number: usize) -> bool {
        self.taken.contains(&number)
    }

    /// Joins the units of these numbers, as `plan` says unless parts like them were looked at before. Whether it does.
    pub fn join(
        &mut self,
        units: &Units,
        numbers: &[usize],
        operands: &Operands,
        plan: impl FnOnce() -> Option<P>,
    ) -> bool {
        let parts = || numbers.iter().map(|&number| &units.units[number]);
        let bufs = parts().flat_map(|unit| unit.ins.iter().chain(&unit.outs)).map(|&buf| &units.bufs[buf]);
        let bufs: Vec<(DType, Shape)> = bufs.map(|data| (data.dtype, data.shape.clone())).collect();
        let mut hasher = FxHasher::default();
        (&operands.places, &bufs).hash(&mut hasher);
        parts().for_each(|unit| hash_work(unit, &mut hasher));
        let seen = self.seen.entry(hasher.finish()).or_default();
        let is_same = |(known, _): &&(Parts, Option<usize>)| {
            known.places == operands.places
                && known.bufs == bufs
                && known.works.iter().eq(parts().map(|unit| &unit.work))
        };
        let plan = match seen.iter().find(is_same) {
            Some((_, plan)) => *plan,
            None => {
                let number = plan().map(|plan| {
                    self.plans.push((plan, operands.clone()));
                    self.plans.len() - 1
                });
                let works = parts().map(|unit| unit.work.clone()).collect();
                seen.push((Parts { works, places: operands.places.clone(), bufs }, number));
                number
            }
        };
        let Some(plan) = plan else { return false };
        self.taken.extend(numbers);
        self.joined.push(Joined { numbers: numbers.to_vec(), operands: operands.clone(), plan });
        true
    }

    /// Makes the kernels.
    pub fn made(self, kernel: impl Fn(&P, &Operands) -> Kernel + Sync) -> Made {
        let Joining { plans, joined, .. } = self;
        let kernels = parallel::map(&plans, |(plan, operands)| kernel(plan, operands));
        Made { kernels, joined }
    }
}

/// Units that are joined, and their kernels.
pub struct Made {
    kernels: Vec<Kernel>,
    joined: Vec<Joined>,
}

impl Made {
    /// Replaces the units by those kernels.
    pub fn replace(self, units: &mut Units) {
        let mut dead: BTreeSet<usize> = BTreeSet::new();
        for Joined { numbers, operands, plan } in self.joined {
            let Some((&last, others)) = numbers.split_last() else { continue };
            units.units[last] = units.joined(&numbers, operands.bufs, self.kernels[plan].clone());
            dead.extend(others);
        }
        units.remove(&dead);
    }
}

/// Of a kernel, that it is one: what its buffers are is hashed, and walking through its loops takes as long as comparing.
fn hash_work(unit: &Unit, hasher: &mut FxHasher) {
    std::mem::discriminant(&unit.work).hash(hasher);
    match &unit.work {
        UnitWork::Nest(nest) | UnitWork::Copy(nest) | UnitWork::Padded(nest, _) => nest.hash(hasher),
        UnitWork::Kernel(kernel) => kernel.vals.len().hash(hasher),
        UnitWork::Rounds(_) | UnitWork::Body(_) | UnitWork::Interpret(_) => {}
    }
}
