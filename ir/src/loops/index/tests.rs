//! Index maps compose, cancel, and agree with arithmetic.

use super::*;

fn var(id: u32, extent: usize) -> Index {
    Index::var(Var { id, extent })
}

#[test]
fn reshapes_compose_and_cancel() {
    // [6, 35] seen as [6, 5, 7] and flattened again.
    let flat = var(0, 210);
    let index = Index::unflatten(&flat, &[6, 5, 7]);
    assert_eq!(Index::flatten(&index, &[6, 5, 7]), flat);
    // And through another shape in between.
    let other = Index::unflatten(&Index::flatten(&index, &[6, 5, 7]), &[10, 21]);
    assert_eq!(Index::flatten(&other, &[10, 21]), flat);
}

#[test]
fn splitting_a_dimension_needs_no_division() {
    let (head, lane) = (var(0, 12), var(1, 64));
    let flat = head.mul(64).add(&lane);
    assert_eq!(flat.div(64), head);
    assert_eq!(flat.rem(64), lane);
}

#[test]
fn what_stays_within_a_block_is_not_divided() {
    let (block, lane) = (var(0, 10), var(1, 16));
    let flat = block.mul(16).add(&lane);
    assert_eq!(flat.div(64), block.div(4));
    assert_eq!(flat.rem(64), block.rem(4).mul(16).add(&lane));
    assert_eq!(flat.div(64).mul(64).add(&flat.rem(64)), flat);
    // It crosses blocks of 8.
    assert!(flat.rem(24).coefficient(Var { id: 1, extent: 16 }).is_none());
}

#[test]
fn division_agrees_with_arithmetic() {
    let (x, y) = (Var { id: 0, extent: 9 }, Var { id: 1, extent: 7 });
    for (a, b, c, d) in
        [(3, 2, 1, 4), (6, 4, 3, 8), (-5, 3, -2, 6), (12, 6, 7, 9), (2, -4, 5, 12), (8, 1, 1, 32)]
    {
        let index = Index::var(x).mul(a).add(&Index::var(y).mul(b)).add_const(c);
        let composed = index.div(d).mul(d).add(&index.rem(d));
        let nested = index.div(d).div(3).add(&index.rem(d).rem(2)).add(&index.rem(12).div(4));
        for i in 0..9 {
            for j in 0..7 {
                let at = |v: Var| if v == x { i } else { j };
                let none = |_| unreachable!();
                let n = a * i + b * j + c;
                assert_eq!(composed.eval(&at, &none), n, "{composed}");
                let expected = n.div_euclid(d).div_euclid(3)
                    + n.rem_euclid(d).rem_euclid(2)
                    + n.rem_euclid(12).div_euclid(4);
                assert_eq!(nested.eval(&at, &none), expected, "{nested}");
            }
        }
    }
}
