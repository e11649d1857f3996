//! The examples of what is hard about deep learning say what they should.

#![expect(
    clippy::duplicate_mod,
    reason = "each example reads the data by itself, as a program of its own does"
)]

#[expect(dead_code, reason = "its `main` is for people")]
#[path = "../../examples/adversarial.rs"]
mod adversarial;
#[expect(dead_code, reason = "its `main` is for people")]
#[path = "../../examples/compute.rs"]
mod compute;
#[expect(dead_code, reason = "its `main` is for people")]
#[path = "../../examples/imbalance.rs"]
mod imbalance;
#[expect(dead_code, reason = "its `main` is for people")]
#[path = "../../examples/interpretability.rs"]
mod interpretability;
#[expect(dead_code, reason = "its `main` is for people")]
#[path = "../../examples/missing_values.rs"]
mod missing_values;

#[test]
fn training_against_attacks_helps() {
    let [plain, trained] = adversarial::run().unwrap();
    assert!(plain[0].1 > 0.95 && trained[0].1 > 0.93, "{plain:?} {trained:?}");
    assert!(trained[3].1 > plain[3].1 + 0.2, "{plain:?} {trained:?}");
}

#[test]
fn bytes_and_few_weights_read_digits() {
    let [exact, bytes, pruned] = compute::run().unwrap();
    assert!(exact > 0.96 && bytes > exact - 0.01 && pruned > exact - 0.03, "{exact} {bytes} {pruned}");
}

#[test]
fn rare_classes_are_learnt() {
    let recalls = imbalance::run().unwrap();
    for (name, recall) in &recalls[1..] {
        assert!(*recall > recalls[0].1 + 0.02, "{name}: {recall}, {}", recalls[0].1);
    }
}

#[test]
fn attributions_add_up() {
    let folder = tempfile::tempdir().unwrap();
    let gap = interpretability::run(Some(folder.path())).unwrap();
    assert!(gap < 0.02, "{gap}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
}

#[test]
fn digits_with_gaps_are_read() {
    let (accuracy, complaint) = missing_values::run().unwrap();
    assert!(accuracy > 0.9, "{accuracy}");
    assert!(complaint.ends_with("the first that is none is in `x`"), "{complaint}");
}
