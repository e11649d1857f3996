//! The bounds that random graphs are held to say something: nearly all are some units in the last place.

use windlass_tests::bounds::{bounds, unit_roundoff};
use windlass_tests::generate::{Options, generate};

#[test]
fn bounds_of_random_graphs_are_tight() {
    let (mut exact, mut inexact, mut loose) = (0, 0, 0);
    let mut relative: Vec<f64> = Vec::new();
    for seed in 0..200 {
        let generated = generate(seed, &Options::default());
        for (tensor, bounds) in generated.outputs.iter().zip(bounds(&generated)) {
            let values = tensor.to_f64s();
            let largest = values.iter().filter(|x| x.is_finite()).fold(0.0, |most: f64, x| most.max(x.abs()));
            for bound in bounds {
                match bound == 0.0 {
                    true => exact += 1,
                    false => {
                        let units = bound / (unit_roundoff(tensor.dtype()) * largest);
                        inexact += 1;
                        loose += usize::from(units > 1024.0);
                        relative.push(units);
                    }
                }
            }
        }
    }
    relative.sort_by(f64::total_cmp);
    let median = relative[relative.len() / 2];
    println!("{exact} elements exact, {inexact} inexact: median {median} units, {loose} over 1024");
    assert!(exact > 1000 && inexact > 1000, "{exact} exact and {inexact} inexact elements");
    assert!(median < 32.0, "half of the bounds are over {median} units of the largest element");
    assert!(loose * 20 < inexact, "{loose} of {inexact} bounds are over 1024 units of the largest element");
}
