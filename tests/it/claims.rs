//! The grammar of claims: what its words make, what negation and quotation take away, and that it reads every draft.

use countersign::bundle::{Bundle, Reading};
use countersign::content::drafts::Draft;
use countersign::content::values::{ValueKey, Values};
use proptest::prelude::*;
use serde_json::Value;

use crate::harness::policies;

/// The languages of the reference bundle, with sentences in which a noun and a form of a verb make a claim, then the same
/// without one.
const SENTENCES: [(&str, [&str; 2], [&str; 4]); 4] = [
    (
        "en",
        ["Your {about} has been {did}.", "We have {did} your {about}."],
        [
            "Your {about} has not been {did}.",
            "We have not {did} your {about}.",
            "Once your {about} has been {did}, we write.",
            "Has your {about} been {did}?",
        ],
    ),
    (
        "de",
        ["Ihr {about} wurde {did}.", "Wir haben Ihren {about} {did}."],
        [
            "Ihr {about} wurde nicht {did}.",
            "Wir haben Ihren {about} nicht {did}.",
            "Sobald Ihr {about} {did} wurde, schreiben wir.",
            "Wurde Ihr {about} {did}?",
        ],
    ),
    (
        "es",
        ["Su {about} ha sido {did}.", "Hemos {did} su {about}."],
        [
            "Su {about} no ha sido {did}.",
            "No hemos {did} su {about}.",
            "Cuando su {about} haya sido {did}, le escribimos.",
            "¿Ha sido {did} su {about}?",
        ],
    ),
    (
        "fr",
        ["Votre {about} a été {did}.", "Nous avons {did} votre {about}."],
        [
            "Votre {about} n'a pas été {did}.",
            "Nous n'avons pas {did} votre {about}.",
            "Dès que votre {about} aura été {did}, nous écrivons.",
            "Votre {about} a-t-il été {did} ?",
        ],
    ),
];

fn bundle() -> Bundle {
    Bundle::load(&policies(), Reading::default()).unwrap()
}

fn claims(bundle: &Bundle, text: &str) -> Vec<String> {
    let redacted = Values::new(ValueKey::new([0; 16]));
    let draft = Draft {
        text,
        sources: vec![],
        customer: vec![],
        has_sources: false,
        unknown_source: false,
        confidence: 100,
        locale: "",
        redacted: &redacted,
    };
    bundle.rules.detectors.draft(&draft).claims().into_iter().map(str::to_owned).collect()
}

/// Returns the frames of a language: code, nouns of one word, and forms of verbs of one word.
fn frames(language: &str) -> Vec<(String, Vec<String>, Vec<String>)> {
    let file = policies().join(format!("detectors/claims-{language}.yaml"));
    let read: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let words = |frame: &Value, member: &str| -> Vec<String> {
        let all = frame[member].as_array().cloned().unwrap_or_default();
        let one = |word: &Value| Some(word.as_str()?.to_owned()).filter(|word| !word.contains([' ', '\'']));
        all.iter().filter_map(one).collect()
    };
    let frames = read["frames"].as_array().unwrap();
    frames
        .iter()
        .map(|frame| (frame["code"].as_str().unwrap().to_owned(), words(frame, "about"), words(frame, "did")))
        .collect()
}

/// Every noun of a frame with every form of a verb: at least 98 of 100 are found, and none in a denial, condition or question.
#[test]
fn each_noun_with_each_form_makes_its_claim_and_a_denial_takes_it_away() {
    let bundle = bundle();
    for (language, made, unmade) in SENTENCES {
        let (mut found, mut all, mut wrong) = (0, 0, vec![]);
        for (code, nouns, forms) in frames(language) {
            // A frame without a form of one word has nothing to combine.
            for (index, noun) in nouns.iter().enumerate() {
                for form in forms.iter().skip(index % 3).step_by(3) {
                    let write = |sentence: &str| sentence.replace("{about}", noun).replace("{did}", form);
                    for sentence in made.map(write) {
                        all += 1;
                        let claims = claims(&bundle, &sentence);
                        // A general claim gives way to a more precise one.
                        found +=
                            usize::from(claims.contains(&code) || code == "action_completed" && !claims.is_empty());
                    }
                    wrong.extend(unmade.map(write).into_iter().filter(|text| !claims(&bundle, text).is_empty()));
                }
            }
        }
        assert!(all > 500, "{language}: {all}");
        assert!(found * 100 >= all * 98, "{language}: {found} of {all}");
        assert!(wrong.len() * 200 <= all, "{language}: {} of {all}: {:?}", wrong.len(), &wrong[..wrong.len().min(20)]);
    }
}

/// What the customer said is no claim of ours, in whatever words.
#[test]
fn a_quotation_never_adds_a_claim() {
    let bundle = bundle();
    for (language, said) in
        [("en", "You wrote: "), ("de", "Sie schreiben: "), ("es", "Usted dice: "), ("fr", "Vous dites : ")]
    {
        let table = policies().join(format!("tests/claims-{language}.yaml"));
        let table: Value = serde_saphyr::from_str(&std::fs::read_to_string(table).unwrap()).unwrap();
        let mut texts = 0;
        for case in table["cases"].as_array().unwrap() {
            for text in case["each"]["draft"].as_array().unwrap() {
                let quoted = format!("{said}\"{}\"", text.as_str().unwrap().trim_end_matches(['.', '!']));
                assert_eq!(claims(&bundle, &quoted), Vec::<String>::new(), "{quoted}");
                texts += 1;
            }
        }
        assert!(texts >= 98, "{language}: {texts}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::harness::cases(64)))]

    /// Any text is read, in time that grows with its length, and each claim has its place in the text.
    #[test]
    fn any_text_is_read(words in proptest::collection::vec("we|your|refund|was|not|issued|,|\"|\\.|\\?|wurde|Geld|ß|é|\\PC{1,3}", 0..200)) {
        thread_local!(static BUNDLE: Bundle = bundle());
        let text = words.join(" ");
        let redacted = Values::new(ValueKey::new([0; 16]));
        let draft = Draft { text: &text, sources: vec![], customer: vec![], has_sources: false, unknown_source: false, confidence: 100, locale: "", redacted: &redacted };
        let report = BUNDLE.with(|bundle| bundle.rules.detectors.draft(&draft));
        for finding in report.findings.iter().filter(|finding| finding.kind == "claim") {
            let (start, end) = finding.span.unwrap();
            prop_assert!(text.get(start..end).is_some_and(|words| !words.is_empty()), "{finding:?}");
        }
    }
}
