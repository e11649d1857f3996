//! `scan` over a batch of examples: its body for a batch, scanned once.

use std::ops::Range;
use std::sync::Arc;

use super::{Scan, Vmap, VmapCx};
use crate::error::Error;
use crate::graph::{Builder, Value};
use crate::vmap::{repeated, vmap_into};

/// A scan of one example.
pub(super) struct BatchedScan<'s> {
    pub scan: &'s Scan,
    /// How many operands are states.
    pub states: usize,
    /// Which operands are scanned, and along which axes.
    pub scanned: Range<usize>,
    pub axes: &'s [usize],
    /// The axis of each stacked result.
    pub stacked: Vec<usize>,
}

impl BatchedScan<'_> {
    pub fn vmap(&self, cx: &mut VmapCx<'_>) -> Result<Vmap, Error> {
        let mut types = cx.types();
        for (ty, &axis) in types[self.scanned.clone()].iter_mut().zip(self.axes) {
            ty.dims.remove(axis);
        }
        let body = self.scan.body.with_input_types(&types)?;
        // A state that becomes one of the batch is one from the start.
        let mut batched = cx.batched.to_vec();
        let (body, outs) = loop {
            let mut b = Builder::new(&body.name);
            let mut values = Vec::new();
            for (i, (ty, &batched)) in types.iter().zip(&batched).enumerate() {
                let mut ty = ty.clone();
                if batched {
                    ty.dims.insert(0, cx.batch.into());
                }
                values.push(b.input(&format!("in{i}"), ty));
            }
            let outs = vmap_into(&mut b, &body, &values, &batched, cx.batch)?;
            let more: Vec<usize> = (0..self.states).filter(|&i| outs[i].1 && !batched[i]).collect();
            if more.is_empty() {
                break (b, outs);
            }
            more.into_iter().for_each(|i| batched[i] = true);
        };
        let op = Scan {
            body: Arc::new(self.body(body, &outs, &batched, cx.batch)?),
            scan_input_axes: (self.axes.iter().zip(self.scanned.clone()))
                .map(|(&axis, i)| axis as i64 + i64::from(batched[i]))
                .collect(),
            scan_output_axes: self.stacked.iter().map(|&axis| axis as i64 + 1).collect(),
            ..self.scan.clone()
        };
        let mut ins = cx.ins.to_vec();
        for i in (0..self.states).filter(|&i| batched[i]) {
            ins[i] = cx.with_batch(i)?;
        }
        let mut results = cx.builder.push(op, &ins, cx.name.clone())?;
        for (result, &batched) in results.iter_mut().zip(&batched[..self.states]) {
            *result = repeated(cx.builder, (*result, batched), cx.batch)?;
        }
        Ok(Vmap::Values(results))
    }

    /// The body: its states are of the batch where they are taken so, and all that is stacked.
    fn body(
        &self,
        mut b: Builder,
        outs: &[(Value, bool)],
        batched: &[bool],
        batch: usize,
    ) -> Result<crate::graph::Graph, Error> {
        for (i, &out) in outs.iter().enumerate() {
            let value = match i < self.states && !batched[i] {
                true => out.0,
                false => repeated(&mut b, out, batch)?,
            };
            b.output(&format!("out{i}"), value);
        }
        b.finish()
    }
}
