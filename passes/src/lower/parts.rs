//! Kernels of several parts, each of which was a unit: what they read, and what came of parts that are alike.

use std::hash::{Hash, Hasher};

use rustc_hash::{FxHashMap, FxHasher};
use windlass_ir::loops::{Buffer, KernelBuilder, Role};
use windlass_ir::{DType, Shape};

use super::units::{Buf, Unit, UnitWork, Units};

/// The buffers that a kernel of several parts reads, each once.
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

/// What parts came to when they were joined, to be found again for parts that are alike: models repeat their layers.
pub struct Alike<T> {
    seen: FxHashMap<u64, Vec<(Parts, T)>>,
}

/// What the outcome depends on: what each part does, to which of the operands, and what its buffers are.
#[derive(PartialEq)]
struct Parts {
    works: Vec<UnitWork>,
    places: Vec<Vec<Option<usize>>>,
    bufs: Vec<(DType, Shape)>,
}

impl<T: Clone> Alike<T> {
    /// Nothing yet.
    pub fn new() -> Alike<T> {
        Alike { seen: FxHashMap::default() }
    }

    /// What the units of these numbers come to together, by `join` unless parts like them were joined before.
    pub fn obtain(
        &mut self,
        units: &Units,
        numbers: &[usize],
        operands: &Operands,
        join: impl FnOnce() -> T,
    ) -> T {
        let parts = || numbers.iter().map(|&number| &units.units[number]);
        let bufs = parts().flat_map(|unit| unit.ins.iter().chain(&unit.outs)).map(|&buf| &units.bufs[buf]);
        let bufs: Vec<(DType, Shape)> = bufs.map(|data| (data.dtype, data.shape.clone())).collect();
        let mut hasher = FxHasher::default();
        (&operands.places, &bufs).hash(&mut hasher);
        parts().for_each(|unit| hash_work(unit, &mut hasher));
        let seen = self.seen.entry(hasher.finish()).or_default();
        let is_same = |(known, _): &&(Parts, T)| {
            known.places == operands.places
                && known.bufs == bufs
                && known.works.iter().eq(parts().map(|unit| &unit.work))
        };
        if let Some((_, outcome)) = seen.iter().find(is_same) {
            return outcome.clone();
        }
        let outcome = join();
        let works = parts().map(|unit| unit.work.clone()).collect();
        seen.push((Parts { works, places: operands.places.clone(), bufs }, outcome.clone()));
        outcome
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
