//! Tokens that only this deployment reads: claims and their MAC (HMAC-SHA256, RFC 2104), each in base64url. A
//! MAC costs a fraction of a signature, and no other party has to verify these tokens. The key is derived for
//! one kind of token, so no token of another kind verifies.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::jose::{SignFault, TokenFault};
use crate::json;

/// Maximum length of a token, in bytes.
const TOKEN_MAX: usize = 16 * 1024;

/// Key of one kind of token. Its `Debug` output contains no byte of it.
pub struct MacKey(hmac::Key);

impl std::fmt::Debug for MacKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("MacKey")
    }
}

impl MacKey {
    pub fn new(bytes: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// Returns the token of these claims.
    ///
    /// # Errors
    /// If the claims can't be serialized.
    pub fn seal(&self, claims: &impl Serialize) -> Result<String, SignFault> {
        let claims = serde_json::to_vec(claims).map_err(|_| SignFault)?;
        let mut token = BASE64.encode(claims);
        let mac = hmac::sign(&self.0, token.as_bytes());
        token.push('.');
        BASE64.encode_string(mac, &mut token);
        Ok(token)
    }

    /// Returns the MAC of a text under a key of any length, in base64, as webhooks are signed.
    pub fn sign_webhook(secret: &[u8], text: &str) -> String {
        let mac = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), text.as_bytes());
        base64::engine::general_purpose::STANDARD.encode(mac)
    }

    /// Verifies a token and returns its claims. Their times are not checked yet.
    ///
    /// # Errors
    /// If the token is not of this key, or its claims have another form.
    pub fn open<C: DeserializeOwned>(&self, token: &str) -> Result<C, TokenFault> {
        if token.len() > TOKEN_MAX {
            return Err(TokenFault::Malformed);
        }
        let (claims, mac) = token.split_once('.').ok_or(TokenFault::Malformed)?;
        let mac = BASE64.decode(mac).map_err(|_| TokenFault::Malformed)?;
        hmac::verify(&self.0, claims.as_bytes(), &mac).map_err(|_| TokenFault::Signature)?;
        let claims = BASE64.decode(claims).map_err(|_| TokenFault::Malformed)?;
        json::read_as(&claims).map_err(|_| TokenFault::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unchanged_token_of_the_same_key_opens() {
        let (key, other) = (MacKey::new(&[1; 32]), MacKey::new(&[2; 32]));
        let claims = json::object([("sub", json::Value::from("support-tools"))]);
        let token = key.seal(&claims).expect("sealed");
        let opened = |key: &MacKey, token: &str| key.open::<json::Object>(token).ok();
        assert_eq!(opened(&key, &token).as_ref(), claims.as_object());
        assert_eq!(opened(&other, &token), None);
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert_eq!(opened(&key, std::str::from_utf8(&changed).expect("ASCII")), None, "byte {at}");
        }
        let (claims, mac) = token.split_once('.').expect("two parts");
        for made in
            [format!("{claims}."), format!(".{mac}"), claims.to_owned(), format!("{token}.{mac}"), String::new()]
        {
            assert_eq!(opened(&key, &made), None, "{made}");
        }
        assert_eq!(opened(&key, &"a".repeat(TOKEN_MAX + 1)), None);
    }
}
