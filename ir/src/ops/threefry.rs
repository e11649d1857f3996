//! `threefry`: random bits from a key and counters.

use smallvec::SmallVec;

use super::elementwise::broadcast_index;
use super::{Lowered, OpDef, Vmap, VmapCx, arity};
use crate::attrs::{AttrError, Codec, Slot};
use crate::dtype::DType;
use crate::error::{Error, Violation};
use crate::loops::NestBuilder;
use crate::ops::points::points;
use crate::require;
use crate::scalar::ScalarFn;
use crate::tensor::Tensor;
use crate::types::{TensorType, broadcast_dims, strides};

/// Two random words for each pair of counters, which broadcast: Threefry-2x32 with 20 rounds, for a key of 64 bits. The
/// same key and counters give the same bits, others give bits that look independent.
///
/// - (C1) the operands are u32;
/// - (C2) they broadcast.
///
/// No ONNX operator. Source: Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (2011).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Threefry {
    /// The key.
    pub key: i64,
}

/// By how many bits each of eight rounds rotates.
const ROTATIONS: [u32; 8] = [13, 15, 26, 6, 17, 29, 16, 24];

/// What makes a third word of a key of two.
const PARITY: u32 = 0x1bd1_1bda;

const ROUNDS: usize = 20;

impl Threefry {
    fn keys(&self) -> [u32; 3] {
        let (low, high) = (self.key as u32, (self.key >> 32) as u32);
        [low, high, low ^ high ^ PARITY]
    }

    /// What is added to both words after a round, if it is the last of a group of four.
    fn injected(&self, round: usize) -> Option<[u32; 2]> {
        let (keys, group) = (self.keys(), round / 4 + 1);
        let pair = [keys[group % 3], keys[(group + 1) % 3].wrapping_add(group as u32)];
        (round % 4 == 3).then_some(pair)
    }

    fn words(&self, counters: [u32; 2]) -> [u32; 2] {
        let keys = self.keys();
        let mut x = [counters[0].wrapping_add(keys[0]), counters[1].wrapping_add(keys[1])];
        for round in 0..ROUNDS {
            x[0] = x[0].wrapping_add(x[1]);
            x[1] = x[1].rotate_left(ROTATIONS[round % 8]) ^ x[0];
            if let Some(pair) = self.injected(round) {
                x = [x[0].wrapping_add(pair[0]), x[1].wrapping_add(pair[1])];
            }
        }
        x
    }
}

impl OpDef for Threefry {
    const NAMES: &'static [&'static str] = &["threefry"];

    fn with_name(_: &str) -> Threefry {
        Threefry::default()
    }

    fn attrs(&mut self, codec: &mut dyn Codec) -> Result<(), AttrError> {
        codec.attr("key", Slot::Int(&mut self.key))
    }

    fn infer(&self, ins: &[&TensorType]) -> Result<Vec<TensorType>, Violation> {
        arity(ins, 2..=2)?;
        let (a, b) = (ins[0], ins[1]);
        require!(a.dtype == DType::U32 && b.dtype == DType::U32, "C1", "{a} and {b} are not u32");
        let Some(dims) = broadcast_dims(&a.dims, &b.dims) else {
            return Err(Violation::new("C2", format!("{a} and {b} do not broadcast")));
        };
        Ok(vec![TensorType::new(DType::U32, dims); 2])
    }

    fn eval(&self, ins: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let types = [ins[0].ty(), ins[1].ty()];
        let shape = self.infer(&[&types[0], &types[1]]).map_err(|v| v.to_string())?.remove(0).shape();
        let at = |operand: usize, index: &[usize]| -> usize {
            let own = ins[operand].shape();
            let inner = index[index.len() - own.len()..].iter().zip(own);
            inner.zip(strides(own)).map(|((&i, &n), step)| if n == 1 { 0 } else { i * step }).sum()
        };
        let (a, b) = (ins[0].as_slice::<u32>(), ins[1].as_slice::<u32>());
        let words: Vec<[u32; 2]> =
            points(&shape).map(|index| self.words([a[at(0, &index)], b[at(1, &index)]])).collect();
        Ok([0, 1].map(|i| Tensor::from_fn::<u32>(&shape, |at| words[at][i])).to_vec())
    }

    fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        cx.broadcasting(self.clone())
    }

    fn lower(&self, ins: &[TensorType], outs: &[TensorType]) -> Result<Lowered, Error> {
        let mut n = NestBuilder::new(&outs[0].shape());
        let at = n.domain();
        let mut x: SmallVec<[_; 2]> = SmallVec::new();
        for (ty, key) in ins.iter().zip(self.keys()) {
            let operand = n.operand(DType::U32, &ty.shape());
            let counter = n.load(operand, &broadcast_index(&at, &ty.shape()));
            let key = n.constant_bits(DType::U32, u64::from(key));
            x.push(n.apply(ScalarFn::Add, &[counter, key]));
        }
        for round in 0..ROUNDS {
            x[0] = n.apply(ScalarFn::Add, &[x[0], x[1]]);
            let by = ROTATIONS[round % 8];
            let (left, right) =
                (n.constant_bits(DType::U32, u64::from(by)), n.constant_bits(DType::U32, u64::from(32 - by)));
            let (left, right) =
                (n.apply(ScalarFn::Shl, &[x[1], left]), n.apply(ScalarFn::Shr, &[x[1], right]));
            let turned = n.apply(ScalarFn::Or, &[left, right]);
            x[1] = n.apply(ScalarFn::Xor, &[turned, x[0]]);
            if let Some(pair) = self.injected(round) {
                for (word, key) in x.iter_mut().zip(pair) {
                    let key = n.constant_bits(DType::U32, u64::from(key));
                    *word = n.apply(ScalarFn::Add, &[*word, key]);
                }
            }
        }
        Ok(Lowered::nest(n.finish(&x)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::check;

    /// The known answers of Random123.
    #[test]
    fn words_are_those_of_its_authors() {
        let cases: [(u64, [u32; 2], [u32; 2]); 3] = [
            (0, [0, 0], [0x6b20_0159, 0x99ba_4efe]),
            (u64::MAX, [u32::MAX; 2], [0x1cb9_96fc, 0xbb00_2be7]),
            (0x0370_7344_1319_8a2e, [0x243f_6a88, 0x85a3_08d3], [0xc492_3a9c, 0x483d_f7a0]),
        ];
        for (key, counters, expected) in cases {
            let op = Threefry { key: key as i64 };
            let found = check(op, &counters.map(|word| Tensor::new(&[1], &[word])));
            assert_eq!([found[0].as_slice::<u32>()[0], found[1].as_slice::<u32>()[0]], expected);
        }
        let rows = Tensor::new(&[2, 1], &[1u32, 2]);
        let found = check(Threefry { key: 5 }, &[rows, Tensor::new(&[3], &[7u32, 8, 9])]);
        assert_eq!(found[0].shape(), [2, 3]);
    }

    #[test]
    fn constraints_are_named() {
        let ty = |dtype, shape: &[usize]| TensorType::fixed(dtype, shape);
        let violated =
            |a: &TensorType, b: &TensorType| Threefry::default().infer(&[a, b]).unwrap_err().constraint;
        assert_eq!(violated(&ty(DType::I32, &[1]), &ty(DType::U32, &[1])), "C1");
        assert_eq!(violated(&ty(DType::U32, &[3]), &ty(DType::U32, &[2])), "C2");
    }
}
