//! Rows of the generator's table for recurrent layers and their steps.

use windlass_ir::DType;

use super::propose::Set;
use super::values::Values;
use super::{Growing, Precision, Proposal, Wanted};

impl Growing<'_> {
    /// `rnn`, `gru` or `lstm`, or the steps of one.
    pub(super) fn recurrent(&mut self, name: &str) -> Option<Proposal> {
        let steps_only = name.ends_with("_steps");
        let lstm = name.starts_with("lstm");
        let gates = match name.get(..3) {
            Some("rnn") => 1,
            Some("gru") => 3,
            _ => 4,
        };
        let dtype = self.dtype(|d| d == DType::F64 || d == DType::F32 || (d.is_float() && !steps_only));
        let of = |shape: Vec<usize>| Wanted::New(dtype, shape, Values::Within(-1.0, 1.0));
        let [mut steps, mut batch, width, mut size] = [(); 4].map(|()| 1 + self.rng.below(4));
        if self.rng.below(4) == 0 {
            // Of several vectors, in several blocks of registers. Errors of wide states grow fast from step to step.
            steps = 1;
            batch = *self.rng.choose(&[1, 2, 5, 13]);
            size = *self.rng.choose(&[8, 16, 20]);
        }
        let lengths = Wanted::New(DType::I32, vec![batch], Values::Within(0.0, steps as f64));
        let [bias, lens, first, second, peepholes] = [(); 5].map(|()| self.rng.flag());
        let mut sets = vec![("sequence_lens", Set::Bool(lens))];
        let mut wanted;
        if steps_only {
            let hidden_bias = bias && gates == 3;
            let linear_before_reset = gates == 3 && self.rng.flag();
            let state = vec![batch, size];
            wanted = [vec![steps, batch, gates * size], vec![gates * size, size], state].map(of).to_vec();
            if gates == 3 {
                sets.push(("linear_before_reset", Set::Bool(linear_before_reset)));
            }
            let optional =
                [(lstm, vec![batch, size]), (hidden_bias, vec![size]), (peepholes && lstm, vec![3 * size])];
            wanted.extend(optional.into_iter().filter(|(present, _)| *present).map(|(_, shape)| of(shape)));
            wanted.extend(lens.then_some(lengths));
            sets.push(("hidden_bias", Set::Bool(hidden_bias)));
            sets.push(("peepholes", Set::Bool(peepholes && lstm)));
        } else {
            let (direction, count) =
                *self.rng.choose(&[("forward", 1), ("reverse", 1), ("bidirectional", 2)]);
            let batch_first = self.rng.flag();
            let x = if batch_first { vec![batch, steps, width] } else { vec![steps, batch, width] };
            let state = if batch_first { vec![batch, count, size] } else { vec![count, batch, size] };
            wanted = vec![of(x), of(vec![count, gates * size, width]), of(vec![count, gates * size, size])];
            wanted.extend(bias.then(|| of(vec![count, 2 * gates * size])));
            wanted.extend(lens.then_some(lengths));
            wanted.extend(first.then(|| of(state.clone())));
            wanted.extend((second && lstm).then(|| of(state)));
            wanted.extend((peepholes && lstm).then(|| of(vec![count, 3 * size])));
            sets.push(("direction", Set::Word(direction)));
            let flags = [("batch_first", batch_first), ("bias", bias), ("initial_h", first)];
            sets.extend(flags.map(|(name, flag)| (name, Set::Bool(flag))));
            if lstm {
                sets.extend([("initial_c", Set::Bool(second)), ("peepholes", Set::Bool(peepholes))]);
            }
        }
        let op = self.op(name, sets);
        Some(Proposal { op, wanted, precision: Precision::Approximate, jumps: false })
    }
}
