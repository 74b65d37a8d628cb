//! Signature algorithms, and the faults of a token.

/// A signature algorithm (RFC 7518). The set contains neither MACs nor `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Algorithm {
    /// ECDSA on P-256 with SHA-256.
    #[serde(rename = "ES256")]
    Es256,
    /// RSASSA-PSS with SHA-256.
    #[serde(rename = "PS256")]
    Ps256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    #[serde(rename = "RS256")]
    Rs256,
}

impl Algorithm {
    /// Returns the value of header `alg`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Es256 => "ES256",
            Self::Ps256 => "PS256",
            Self::Rs256 => "RS256",
        }
    }
}

/// Reasons why a token is rejected. They reveal nothing of its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenFault {
    Algorithm,
    Audience,
    /// A claim is missing or has the wrong type. The name is empty for a claim that only one format has.
    Claims(&'static str),
    Expired,
    /// The header has a member that is rejected.
    Header,
    Issuer,
    /// No key has this `kid`.
    Key,
    /// The token is valid for longer than allowed.
    Life,
    /// The token is not a compact JWS.
    Malformed,
    /// The token is not valid yet.
    NotYet,
    /// The key was revoked.
    Revoked,
    Signature,
    Type,
}

impl TokenFault {
    /// Names in [`TokenFault::Claims`].
    pub const NAMED_CLAIMS: [&str; 7] = ["", "aud", "exp", "iat", "iss", "nbf", "sub"];

    /// Returns a constant description of the fault.
    pub fn message(self) -> &'static str {
        match self {
            Self::Algorithm => "the token's `alg` is not the expected one",
            Self::Audience => "the token's `aud` is not this server",
            Self::Claims("aud") => "the token's `aud` is missing or has the wrong type",
            Self::Claims("exp") => "the token's `exp` is missing or has the wrong type",
            Self::Claims("iat") => "the token's `iat` is missing or has the wrong type",
            Self::Claims("iss") => "the token's `iss` is missing or has the wrong type",
            Self::Claims("nbf") => "the token's `nbf` is missing or has the wrong type",
            Self::Claims("sub") => "the token's `sub` is missing or has the wrong type",
            Self::Claims(_) => "a required claim of the token is missing or has the wrong type",
            Self::Expired => "the token has expired",
            Self::Header => "the token's header has a member that is not allowed",
            Self::Issuer => "the token's `iss` is not trusted",
            Self::Key => "the token's `kid` is not known",
            Self::Life => "the token is valid for longer than allowed",
            Self::Malformed => "the token is not a compact JWS",
            Self::NotYet => "the token is not valid yet",
            Self::Revoked => "the token's key was revoked",
            Self::Signature => "the token's signature does not verify",
            Self::Type => "the token's `typ` is not the expected one",
        }
    }
}
