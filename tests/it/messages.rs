//! Messages of people in distress and of frauds: what the models find in messages that none of them was trained on.

use std::path::Path;

use countersign::bundle::{Bundle, Reading};
use countersign::workbench::detectors::corpus::{Part, Row, read};
use countersign::workbench::detectors::evaluate::{Measure, evaluate};

use crate::harness::policies;

fn rows(folder: &str) -> Vec<Row> {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("training").join(folder), Part::All).unwrap()
}

/// Returns how many of how many texts all measures count whose names begin like this.
fn count(measures: &[Measure], begins: &str) -> (usize, usize) {
    let own = measures.iter().filter(|measure| measure.name.starts_with(begins));
    own.fold((0, 0), |(found, of), measure| (found + measure.found, of + measure.of))
}

#[test]
fn messages_of_distress_and_fraud_are_found_in_each_language_and_most_near_misses_are_not() {
    let detectors = Bundle::load(&policies(), Reading::default()).unwrap().rules.detectors;
    let unseen = rows("unseen");
    let measures = evaluate(&detectors, &unseen);
    for (kind, least) in [("distress", 90), ("fraud", 85)] {
        let (found, of) = count(&measures, &format!("{kind}: recall in"));
        assert!(of > 110 && found * 100 >= of * least, "{kind}: {found} of {of}");
        for language in ["de", "en", "es", "fr"] {
            let (found, of) = count(&measures, &format!("{kind}: recall in {language}"));
            assert!(of >= 19 && found * 100 >= of * 75, "{kind} in {language}: {found} of {of}");
        }
        // Half of the calm messages have the words of the two kinds in another meaning.
        let (wrong, of) = count(&measures, &format!("{kind}: false findings in"));
        assert!(of > 180 && wrong * 100 <= of * 6, "{kind}: {wrong} of {of} calm messages");
    }
}

/// A figure on texts that a model was trained on says nothing.
#[test]
fn no_unseen_message_is_a_message_of_the_training() {
    let trained: std::collections::BTreeSet<String> = rows("kinds").into_iter().map(|row| row.text).collect();
    let both: Vec<String> =
        rows("unseen").into_iter().map(|row| row.text).filter(|text| trained.contains(text)).collect();
    assert_eq!(both, Vec::<String>::new());
    assert!(trained.len() > 4000);
}
