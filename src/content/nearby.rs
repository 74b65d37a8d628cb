//! Words directly before a value that say what it is, where its shape does not decide: one in ten order numbers of
//! sixteen digits passes a card's checksum, and a version looks like an IP address. Texts are read folded, so the words
//! have no accents.

use crate::model::part::Part;

/// Maximum number of bytes that are read before a value.
pub(super) const BEFORE: usize = 45;
/// Maximum length of a word, in bytes.
const WORD_MAX: usize = 24;
/// Maximum number of signs between a word and the value.
const SIGNS_MAX: usize = 5;
/// Words that may stand between an announcing word and the value, in the languages of [`NUMBERED`].
const FILLERS: [&str; 29] = [
    "id", "is", "it", "no", "num", "number", "nr", "nummer", "was", "ist", "lautet", "war", "es", "est", "fue",
    "numero", "code", "my", "the", "mein", "meine", "mi", "mon", "ma", "de", "del", "der", "die", "la",
];
/// Words that a dot abbreviates.
const ABBREVIATED: [&str; 7] = ["acct", "no", "nr", "num", "ref", "v", "ver"];
/// Number of fillers that are skipped.
const FILLERS_MAX: usize = 3;

/// Things that have a number of their own, in English, German, Spanish and French, in the singular. The number is no
/// card's and no telephone's.
pub(super) const NUMBERED: [&str; 98] = [
    // English
    "account",
    "acct",
    "barcode",
    "booking",
    "card",
    "case",
    "claim",
    "code",
    "confirmation",
    "contract",
    "credit",
    "debit",
    "ean",
    "flight",
    "iban",
    "id",
    "imei",
    "invoice",
    "isbn",
    "item",
    "label",
    "model",
    "order",
    "otp",
    "package",
    "parcel",
    "password",
    "pin",
    "policy",
    "product",
    "purchase",
    "quote",
    "receipt",
    "ref",
    "reference",
    "registration",
    "rma",
    "serial",
    "shipment",
    "sku",
    "social",
    "ssn",
    "ticket",
    "tracking",
    "transaction",
    "voucher",
    "waybill",
    "zip",
    // German
    "auftrag",
    "auftragsnummer",
    "artikel",
    "artikelnummer",
    "bestellung",
    "bestellnummer",
    "buchung",
    "buchungsnummer",
    "karte",
    "konto",
    "kontonummer",
    "kundennummer",
    "paket",
    "quittung",
    "rechnung",
    "rechnungsnummer",
    "seriennummer",
    "sendung",
    "sendungsnummer",
    "ticketnummer",
    "vertrag",
    "vertragsnummer",
    "vorgang",
    "vorgangsnummer",
    // Spanish
    "albaran",
    "compra",
    "contrato",
    "cuenta",
    "factura",
    "paquete",
    "pedido",
    "recibo",
    "referencia",
    "reserva",
    "seguimiento",
    "tarjeta",
    "transaccion",
    // French
    "achat",
    "billet",
    "carte",
    "colis",
    "commande",
    "compte",
    "contrat",
    "dossier",
    "facture",
    "recu",
    "reservation",
    "suivi",
    "serie",
];
/// Those of [`NUMBERED`] that announce a card.
pub(super) const CARDS: [&str; 8] = ["card", "credit", "debit", "karte", "tarjeta", "carte", "account", "code"];
/// Words before the version of a program, which is no IP address.
pub(super) const VERSIONS: [&str; 13] = [
    "app",
    "build",
    "driver",
    "firmware",
    "kernel",
    "patch",
    "release",
    "revision",
    "update",
    "v",
    "ver",
    "version",
    "aktualisierung",
];
/// Words before a checksum or a revision, which is no secret.
pub(super) const CHECKSUMS: [&str; 20] = [
    "blob",
    "checksum",
    "commit",
    "crc",
    "digest",
    "etag",
    "fingerprint",
    "git",
    "hash",
    "md5",
    "revision",
    "sha",
    "sha1",
    "sha256",
    "sha512",
    "sum",
    "prufsumme",
    "hachage",
    "empreinte",
    "huella",
];

/// Parts of words near a value that make its hash a secret, too: a password's hash can be tried.
pub(super) const SECRETS: [&str; 9] =
    ["pass", "secret", "key", "token", "credential", "kennwort", "schlussel", "contrasen", "clave"];

/// Returns whether the word directly before a value, apart from fillers and the ending of a plural, is one of these.
pub(super) fn says(before: &[u8], is: impl Fn(&str) -> bool) -> bool {
    let mut rest = before;
    for _ in 0..=FILLERS_MAX {
        let Some((word, start)) = last_word(rest) else { return false };
        let word = word.to_lowercase();
        let one = word.strip_suffix('s').unwrap_or(&word);
        if is(&word) || is(one) {
            return true;
        }
        if !FILLERS.contains(&&*word) {
            return false;
        }
        rest = rest.part(..start);
    }
    false
}

/// Returns whether the text ends with the beginning of a code, such as `AB12`, that the value continues.
pub(super) fn ends_with_code(before: &[u8]) -> bool {
    let Some((word, start)) = last_word(before) else { return false };
    let signs = before.len() - start - word.len();
    let letters = word.bytes().take_while(u8::is_ascii_alphabetic).count();
    signs <= 1
        && (1..=3).contains(&letters)
        && (letters + 1..=letters + 3).contains(&word.len())
        && word.bytes().skip(letters).all(|byte| byte.is_ascii_digit())
}

/// Returns the last word of a text and where it begins, if only a few signs of the same sentence follow it.
fn last_word(text: &[u8]) -> Option<(&str, usize)> {
    // A byte of a character beyond ASCII belongs to a word; an underscore joins two, as in `order_id`.
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || !byte.is_ascii();
    let signs = text.iter().rev().take(SIGNS_MAX + 1).take_while(|byte| !is_word(byte)).count();
    if signs > SIGNS_MAX {
        return None;
    }
    let end = text.len() - signs;
    let length = text.part(..end).iter().rev().take(WORD_MAX).take_while(|byte| is_word(byte)).count();
    let word = std::str::from_utf8(text.part(end - length..end)).ok()?;
    // The end of a sentence or line separates, but `no.` is an abbreviation.
    let is_ended = text.part(end..).iter().any(|sign| matches!(sign, b'\n' | b'!' | b'?'))
        || text.part(end..).contains(&b'.') && !ABBREVIATED.iter().any(|known| known.eq_ignore_ascii_case(word));
    (!word.is_empty() && !is_ended).then_some((word, end - length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_before_a_value_decides() {
        let is_numbered = |before: &str| says(before.as_bytes(), |word| NUMBERED.contains(&word));
        for before in [
            "my order ",
            "Orders: ",
            "order no. ",
            "invoice number is ",
            "Meine Bestellung ",
            "numero de commande : ",
            "pedido n. ",
            r#"{"tracking_id": [""#,
        ] {
            assert_eq!(is_numbered(before), !before.contains(" n. "), "{before}");
        }
        for before in ["I ordered it with ", "order it! Call ", "order ------ ", "", "in order to pay "] {
            assert!(!is_numbered(before), "{before}");
        }
        assert!(ends_with_code(b"code AB12-") && !ends_with_code(b"pay 12 ") && !ends_with_code(b"AB12, "));
    }
}
