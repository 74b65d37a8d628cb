//! The release of a draft and its token. A released draft may be sent once, exactly as it was evaluated.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::approvals::binding::issuer;
use crate::jose::keyring::Keyring;
use crate::jose::{self, Expected, Opened, SignFault, TokenFault};
use crate::model::approval::Subject;
use crate::model::text::hex;
use crate::model::time::Timestamp;

/// Time for which a released draft may be sent.
pub const RELEASE: Duration = Duration::from_secs(5 * 60);

const RELEASE_TYPE: &str = "countersign-release+jwt";

/// Draft that may be sent, with its case, author, channel and recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// Generation of the store; in any other generation the token is void.
    pub generation: String,
    pub tenant: String,
    /// Id of the case.
    pub case: String,
    /// Customer of the case; empty if the case names none.
    #[serde(default)]
    pub customer: String,
    /// Version of the case that the draft was evaluated against.
    pub case_version: String,
    /// Agent that wrote the draft.
    pub agent: Subject,
    /// Supervisor for whom the agent wrote the draft.
    pub supervisor: Subject,
    /// `sha256:` and the hex SHA-256 of the draft's UTF-8 text.
    pub draft_digest: String,
    /// Channel that the draft is sent on.
    pub channel: String,
    pub recipient: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseClaims {
    iss: String,
    /// Only tool service that may use the token.
    aud: String,
    /// Supervisor for whom the draft was written.
    sub: String,
    /// Evaluation id of the release.
    pub jti: String,
    iat: i64,
    nbf: i64,
    /// End of validity, in Unix seconds.
    pub exp: i64,
    pub release: Release,
}

/// Returns the digest of a draft, as arguments and tokens contain it.
pub fn draft_digest(draft: &str) -> String {
    use sha2::Digest as _;
    format!("sha256:{}", hex(sha2::Sha256::digest(draft.as_bytes())))
}

/// Returns whether a text has the form of a draft's digest.
pub fn is_draft_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
    hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)))
}

/// Signs a release for a tool service. The token is valid for [`RELEASE`].
///
/// # Errors
/// When signing fails.
pub fn sign_release(
    keys: &Keyring,
    environment: &str,
    audience: &str,
    evaluation_id: &str,
    release: Release,
    now: Timestamp,
) -> Result<(String, Timestamp), SignFault> {
    let expires = Timestamp::from_seconds(now.plus(RELEASE).seconds());
    let (iat, exp) = (now.seconds(), expires.seconds());
    let sub = release.supervisor.sub.clone();
    let claims = ReleaseClaims {
        iss: issuer(environment),
        aud: audience.to_owned(),
        sub,
        jti: evaluation_id.to_owned(),
        iat,
        nbf: iat,
        exp,
        release,
    };
    Ok((keys.sign(RELEASE_TYPE, &claims)?, expires))
}

/// Verifies a release token that is addressed to this tool service. Its times are left to the caller, because
/// a retry of an operation gets its stored answer even after the token has expired.
///
/// # Errors
/// When it is not a release token of this environment, or is addressed to another tool service.
pub fn open_release(
    keys: &Keyring,
    environment: &str,
    audience: &str,
    token: &str,
) -> Result<Opened<ReleaseClaims>, TokenFault> {
    jose::open(token, &keys.set, &Expected::own(&[RELEASE_TYPE], &issuer(environment), audience))
}
