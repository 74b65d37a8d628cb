//! The grammar of claims: what its words make, what negation and quotation take away, and that it reads every draft.

use countersign::bundle::{Bundle, Reading};
use countersign::content::claims::{Lexicon, Said, Words};
use countersign::content::drafts::Draft;
use countersign::content::normalise::View;
use countersign::content::values::{ValueKey, Values};
use proptest::prelude::*;
use serde_json::Value;
use unicode_normalization::UnicodeNormalization as _;

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

/// Returns the texts of a language's table.
fn drafts(language: &str) -> Vec<String> {
    texts(&format!("tests/claims-{language}.yaml"))
}

fn texts(table: &str) -> Vec<String> {
    let table = policies().join(table);
    let table: Value = serde_saphyr::from_str(&std::fs::read_to_string(table).unwrap()).unwrap();
    let cases = table["cases"].as_array().unwrap().iter();
    let texts = cases.flat_map(|case| case["each"]["draft"].as_array().unwrap());
    texts.map(|text| text.as_str().unwrap().to_owned()).collect()
}

fn with_views(texts: Vec<String>) -> Vec<(String, View)> {
    let viewed = |text: String| {
        let view = View::folded(&text);
        (text, view)
    };
    texts.into_iter().map(viewed).collect()
}

/// Returns the texts of a language's table of words.
fn sentences(language: &str) -> Vec<String> {
    texts(&format!("tests/words-{language}.yaml"))
}

/// Returns the claims of each text, or `None` if the examples of the words no longer hold.
fn all_claims(file: &Value, texts: &[(String, View)]) -> Option<Vec<Vec<String>>> {
    let (lexicon, faults) = Lexicon::read(serde_json::from_value(file.clone()).unwrap(), |_| true);
    let claims = |(text, view): &(String, View)| {
        let mut claims = vec![];
        let words = Words::of(text, view);
        lexicon.find(&words, |reading| {
            claims.extend((reading.said == Said::Claim).then(|| reading.frame.code.clone()));
        });
        claims
    };
    faults.is_empty().then(|| texts.iter().map(claims).collect())
}

/// Dropping a word, whatever it does in a sentence, is noticed by the tables or the examples in at least 90 of 100 cases.
#[test]
fn a_word_that_is_dropped_is_missed_by_the_tables() {
    const FORMS: [&str; 6] = ["about", "done", "did", "went", "states", "says"];
    let mut poor = vec![];
    for (language, _, _) in SENTENCES {
        let file = policies().join(format!("detectors/claims-{language}.yaml"));
        let file: Value = serde_saphyr::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        let texts = with_views([drafts(language), sentences(language)].concat());
        let whole = all_claims(&file, &texts).expect("the examples of the bundle hold");
        let frames = file["frames"].as_array().unwrap().len();
        // Words of the role `topic` claim nothing: they only say why a sentence is placed.
        let roles = file["words"].as_object().unwrap().keys().filter(|role| *role != "topic");
        let roles = roles.map(|role| format!("/words/{role}"));
        let forms = (0..frames).flat_map(|frame| FORMS.map(|form| format!("/frames/{frame}/{form}")));
        let (mut all, mut unnoticed) = (0, vec![]);
        for list in roles.chain(forms) {
            let words = file.pointer(&list).and_then(Value::as_array).cloned().unwrap_or_default();
            for (index, word) in words.iter().enumerate() {
                let first = View::folded(word.as_str().unwrap()).text().to_lowercase();
                let first = first.split_whitespace().next().unwrap_or("").to_owned();
                // Only texts with the word can tell.
                let with: Vec<usize> =
                    (0..texts.len()).filter(|at| texts[*at].1.text().to_lowercase().contains(&first)).collect();
                let mut mutant = file.clone();
                mutant.pointer_mut(&list).and_then(Value::as_array_mut).unwrap().remove(index);
                all += 1;
                let some: Vec<(String, View)> = with.iter().map(|at| texts[*at].clone()).collect();
                let before = with.iter().map(|at| &whole[*at]);
                if all_claims(&mutant, &some).is_some_and(|claims| claims.iter().eq(before)) {
                    unnoticed.push(format!("{list} {word}"));
                }
            }
        }
        assert!(all > 450, "{language}: {all}");
        if unnoticed.len() * 10 > all {
            poor.push(format!("{language}: {} of {all} are not noticed: {}", unnoticed.len(), unnoticed.join(", ")));
        }
    }
    assert!(poor.is_empty(), "{}", poor.join("\n"));
}

/// What the customer said is no claim of ours, in whatever words.
#[test]
fn a_quotation_never_adds_a_claim() {
    let bundle = bundle();
    for (language, said) in
        [("en", "You wrote: "), ("de", "Sie schreiben: "), ("es", "Usted dice: "), ("fr", "Vous dites : ")]
    {
        let texts = drafts(language);
        for text in &texts {
            let quoted = format!("{said}\"{}\"", text.trim_end_matches(['.', '!']));
            assert_eq!(claims(&bundle, &quoted), Vec::<String>::new(), "{quoted}");
        }
        assert!(texts.len() >= 98, "{language}: {}", texts.len());
    }
}

/// Accents may be characters of their own, and a word without its accent is another word only where accents are written.
#[test]
fn accents_in_any_form_make_the_same_claims() {
    let bundle = bundle();
    for language in ["de", "es", "fr"] {
        let texts = drafts(language);
        assert!(texts.iter().any(|text| text.nfd().collect::<String>() != *text), "{language}");
        for text in &texts {
            let decomposed: String = text.nfd().collect();
            assert_eq!(claims(&bundle, &decomposed), claims(&bundle, text), "{text}");
        }
    }
    let of = |text: &str| claims(&bundle, text);
    assert_eq!(of("Su paquete llego ayer."), ["order_delivered"], "no accent is written");
    assert_eq!(of("Votre commande a ete annulee."), ["cancellation_done"]);
    assert_eq!(of("Nous avons active votre compte."), ["account_changed"], "an auxiliary shows what is meant");
    for other in ["Notre équipe traite votre remboursement.", "Je vérifie votre identité.", "Cambie su plan en la web."]
    {
        assert_eq!(of(other), Vec::<String>::new(), "{other}");
    }
}

/// A claim is found although another clause names the thing of another claim.
#[test]
fn a_name_of_another_clause_hides_no_claim() {
    let bundle = bundle();
    for (text, code) in [
        ("We have shipped it, so you will not need a new one.", "order_shipped"),
        ("Nous avons annulé votre vol et les frais sont de 5 euros.", "cancellation_done"),
        ("Nous l'avons annulé, les frais ne comptent pas.", "cancellation_done"),
        ("Hemos revisado su caso y cancelamos su pedido.", "cancellation_done"),
        ("Su caso fue revisado y anulamos su reserva.", "cancellation_done"),
        ("Nous avons étudié votre demande et venons d'annuler votre commande.", "cancellation_done"),
        ("On 2 May, we cancelled your order.", "cancellation_done"),
    ] {
        let claims = claims(&bundle, text);
        assert!(claims.iter().any(|claim| claim == code), "{text}: {claims:?}");
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
