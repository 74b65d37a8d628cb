//! The release of a draft, and the token that carries it: what the output check let through may be sent once, as it was checked.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::approvals::binding::issuer;
use crate::jose::keyring::Keyring;
use crate::jose::{self, Expected, Opened, SignFault, TokenFault};
use crate::model::approval::Subject;
use crate::model::time::Timestamp;

/// How long a released draft may be sent.
pub const RELEASE: Duration = Duration::from_secs(5 * 60);

const RELEASE_TYPE: &str = "countersign-release+jwt";

/// A draft that may be sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The store's generation: of another one the token is nothing.
    pub generation: String,
    /// Tenant.
    pub tenant: String,
    /// Case id.
    pub case: String,
    /// The case's customer; empty if the case names none.
    #[serde(default)]
    pub customer: String,
    /// The version of the case that the draft was checked against.
    pub case_version: String,
    /// The agent that wrote it.
    pub agent: Subject,
    /// The human that it was written for.
    pub supervisor: Subject,
    /// `sha256:` and hex of the draft's UTF-8.
    pub draft_digest: String,
    /// Channel that it is sent on.
    pub channel: String,
    /// Who gets it.
    pub recipient: String,
}

/// Claims of a release token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseClaims {
    iss: String,
    /// The one tool service that may use it.
    aud: String,
    /// The supervising human, for whom it was written.
    sub: String,
    /// Evaluation id of the release.
    pub jti: String,
    iat: i64,
    nbf: i64,
    /// Until when it may be used, in Unix seconds.
    pub exp: i64,
    /// What may be sent.
    pub release: Release,
}

/// The digest of a draft, as arguments and tokens name it.
pub fn draft_digest(draft: &str) -> String {
    use sha2::Digest as _;
    let mut digest = "sha256:".to_owned();
    sha2::Sha256::digest(draft.as_bytes()).iter().for_each(|byte| digest.push_str(&format!("{byte:02x}")));
    digest
}

/// Whether a text has the form of a draft's digest.
pub fn is_draft_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64);
    hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)))
}

/// Signs a release to a tool service, for [`RELEASE`].
///
/// # Errors
/// When the library fails.
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

/// Opens a release token that is addressed to this tool service. Its times are not judged: a repeated operation is known first.
///
/// # Errors
/// When it is none of ours, or addressed to another.
pub fn open_release(keys: &Keyring, environment: &str, audience: &str, token: &str) -> Result<Opened<ReleaseClaims>, TokenFault> {
    jose::open(token, &keys.set, &Expected::own(&[RELEASE_TYPE], &issuer(environment), audience))
}
