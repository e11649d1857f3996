//! Which steps of a reduction a tile leaves out: those at which none of its rows adds anything.
//!
//! A reduction says for one result where a step matters ([`Expr::Reduce`]); a tile has several, in a row. What is tested
//! is weaker: that the least index of its rows is not past the end, nor the greatest before the beginning.

use windlass_ir::loops::{Atom, Expr, Guard, Index, Nest, Val, Var};

/// Fewer steps than these are not worth a test.
const WORTH: usize = 16;

/// The guards of a reduction that may be tested outside of its innermost loop over `vars`.
pub fn tested(nest: &Nest, reduction: Val, vars: &[Var]) -> Vec<Guard> {
    let Expr::Reduce { within, .. } = nest.expr(reduction) else { return Vec::new() };
    let Some(last) = vars.last().filter(|last| last.extent >= WORTH) else { return Vec::new() };
    within.iter().filter(|guard| !guard.index.mentions(*last)).cloned().collect()
}

/// The guards without which a guard holds for no value of `row`.
pub fn for_some(guard: &Guard, row: Var) -> Vec<Guard> {
    let bounds = Bounds::of(&guard.index, row);
    let not_negative = |index: Index| {
        let (_, most) = index.range();
        Guard::new(index, usize::try_from(most).map_or(0, |most| most + 1))
    };
    let last = Index::constant(guard.size as i64 - 1);
    let both = [not_negative(bounds.most), not_negative(last.sub(&bounds.least))];
    both.into_iter().filter(|guard| guard.as_known() != Some(true)).collect()
}

/// Between what an index lies, whatever the value of one variable is.
struct Bounds {
    least: Index,
    most: Index,
    /// How far apart two of its values may be.
    span: i64,
}

impl Bounds {
    fn of(index: &Index, var: Var) -> Bounds {
        let start = || Index::constant(index.offset());
        let mut bounds = Bounds { least: start(), most: start(), span: 0 };
        for (atom, factor) in index.terms() {
            let Bounds { least, most, span } = Bounds::of_atom(atom, var);
            let (least, most) = if *factor < 0 { (most, least) } else { (least, most) };
            bounds.least.add_multiple(&least, *factor);
            bounds.most.add_multiple(&most, *factor);
            bounds.span += span * factor.abs();
        }
        bounds
    }

    fn of_atom(atom: &Atom, var: Var) -> Bounds {
        match atom {
            Atom::Var(own) if *own == var => {
                let most = var.extent as i64 - 1;
                Bounds { least: Index::constant(0), most: Index::constant(most), span: most }
            }
            Atom::Var(own) => Bounds::exactly(Index::var(*own)),
            Atom::Value(val, extent) => Bounds::exactly(Index::value(*val, *extent)),
            Atom::Div(of, by) => {
                let Bounds { least, most, span } = Bounds::of(of, var);
                Bounds { least: least.div(*by), most: most.div(*by), span: (span + by - 1) / by }
            }
            Atom::Mod(of, by) => {
                let Bounds { least, most, span } = Bounds::of(of, var);
                match span {
                    0 => Bounds::exactly(of.rem(*by)),
                    // It may begin anew once: then one of these is past the ends.
                    1.. if span < *by => {
                        let (first, last) = (least.rem(*by), most.rem(*by));
                        Bounds { least: last.add_const(-span), most: first.add_const(span), span: by - 1 }
                    }
                    _ => {
                        let (least, most) = (Index::constant(0), Index::constant(by - 1));
                        Bounds { least, most, span: by - 1 }
                    }
                }
            }
        }
    }

    fn exactly(index: Index) -> Bounds {
        Bounds { least: index.clone(), most: index, span: 0 }
    }
}
