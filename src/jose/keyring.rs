//! Signing keys in files, one ring for each purpose. The next key is published before it signs, and the
//! previous key is kept until the last token that it signed has expired.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;

use crate::jose::keyset::{KeySet, PublicKey};
use crate::jose::{SignFault, Signer};
use crate::json::{self, Value};
use crate::model::time::Timestamp;

/// Minimum time between publishing a key and signing with it, because readers may cache a key set that long.
pub const PUBLISH: Duration = Duration::from_secs(10 * 60);
/// Retention of a previous key: the lifetime of the longest-lived token that it signed, plus leeway.
pub const RETIRE: Duration = Duration::from_secs(2 * 3600);

/// Purpose of a ring. A key never serves two purposes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Keys that sign approval tokens.
    Approval,
    /// Keys that sign binding tokens of denials, outcome tokens of allows and release tokens of drafts.
    Binding,
    /// Keys that sign delegation and human tokens, which only a development server accepts.
    Development,
}

impl Purpose {
    /// Purposes whose keys a deployment needs.
    pub const DEPLOYED: [Self; 2] = [Self::Approval, Self::Binding];

    /// Returns the name in files and output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Approval => "approval",
            Self::Binding => "binding",
            Self::Development => "development",
        }
    }
}

/// Stage in the life of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The key signs.
    Current,
    /// The key is published and will sign later.
    Next,
    /// The key only verifies tokens that it signed earlier.
    Previous,
}

impl Status {
    /// Returns the name in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Next => "next",
            Self::Previous => "previous",
        }
    }
}

/// A key as stored in its file. It does not implement `Debug`, so the private part can't be printed.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    kid: String,
    status: Status,
    /// Time at which the key got this status, RFC 3339.
    since: String,
    /// PKCS #8 in base64url.
    private: String,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    purpose: Purpose,
    keys: Vec<Stored>,
}

/// Reasons why keys can't be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// A key file is damaged.
    #[error(
        "the key file `{0}` is not one that `countersign keys generate` made: restore it, or move it away and generate new keys"
    )]
    Damaged(PathBuf),
    /// The next key is so new that cached key sets may lack it.
    #[error(
        "the next {0} key was published less than 10 minutes ago: wait, or use `--now` if the current one is compromised"
    )]
    Early(&'static str),
    /// The folder has no keys for the purpose.
    #[error("there are no {0} keys in `{1}`: make them with `countersign keys generate --keys {1}`")]
    Missing(&'static str, PathBuf),
    /// The operating system returned an error.
    #[error("`{0}` can't be read or written: {1}")]
    Io(PathBuf, io::Error),
    /// The cryptographic library failed.
    #[error("the cryptographic library failed to create a key")]
    Library,
}

/// The keys of one purpose.
#[derive(Debug)]
pub struct Keyring {
    /// The current key, which signs; `None` if it was revoked.
    signer: Option<Signer>,
    /// The keys that verify: all except revoked ones.
    pub set: KeySet,
    /// Public keys that are not revoked, as members of a JWK set.
    jwks: Vec<Value>,
}

/// A key for display, without its private part.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Listed {
    pub purpose: Purpose,
    pub kid: String,
    pub status: Status,
    /// Time at which the key got this status, RFC 3339.
    pub since: String,
    /// Whether the list of revoked keys contains the key.
    pub revoked: bool,
}

impl Keyring {
    /// Reads a ring.
    ///
    /// # Errors
    /// If the ring is missing or damaged.
    pub fn read(folder: &Path, purpose: Purpose) -> Result<Self, KeyringError> {
        let file = read(folder, purpose)?.ok_or_else(|| KeyringError::Missing(purpose.name(), folder.to_owned()))?;
        let revoked = revoked(folder)?;
        let damaged = || KeyringError::Damaged(path(folder, purpose));
        let mut set = KeySet::default();
        let mut signer = None;
        let mut jwks = vec![];
        for stored in &file.keys {
            let key = signer_of(stored).ok_or_else(damaged)?;
            set.insert(stored.kid.clone(), PublicKey::P256(key.point().to_vec()));
            if !revoked.contains(&stored.kid) {
                jwks.push(jwk(&stored.kid, key.point()).ok_or_else(damaged)?);
            }
            if stored.status == Status::Current {
                signer = Some(key);
            }
        }
        let signer = Some(signer.ok_or_else(damaged)?).filter(|signer| !revoked.contains(signer.kid()));
        if signer.is_none() {
            tracing::error!(
                name: "keys.current_revoked", purpose = purpose.name(),
                "the current key is revoked; no token is signed until the next key becomes current: `countersign keys rotate --now`"
            );
        }
        set.revoke(&revoked);
        Ok(Self { signer, set, jwks })
    }

    /// Signs claims under a header with this `typ`.
    ///
    /// # Errors
    /// If the current key was revoked, or the library fails.
    pub fn sign(&self, typ: &str, claims: &impl serde::Serialize) -> Result<String, SignFault> {
        self.signer.as_ref().ok_or(SignFault)?.sign(typ, claims)
    }

    #[cfg(test)]
    pub(super) fn kid(&self) -> Option<&str> {
        self.signer.as_ref().map(Signer::kid)
    }

    #[cfg(test)]
    pub(super) fn sign_bytes(&self, text: &[u8]) -> Option<Vec<u8>> {
        self.signer.as_ref()?.sign_bytes(text).ok()
    }

    /// Returns the public keys that are not revoked, as members of a JWK set.
    pub fn jwks(&self) -> Vec<Value> {
        self.jwks.clone()
    }
}

/// Creates a ring with a current and a next key, unless the ring exists. Returns whether it was created.
///
/// # Errors
/// If the ring can't be read or written.
pub fn generate(folder: &Path, purpose: Purpose, now: Timestamp) -> Result<bool, KeyringError> {
    if read(folder, purpose)?.is_some() {
        return Ok(false);
    }
    let keys = vec![fresh(Status::Current, now)?, fresh(Status::Next, now)?];
    write(folder, &File { purpose, keys })?;
    Ok(true)
}

/// Makes the next key the current one, keeps the former current key until its tokens have expired, and
/// publishes a new next key.
///
/// # Errors
/// If the next key was published too recently (unless `at_once`), or the ring can't be read or written.
pub fn rotate(folder: &Path, purpose: Purpose, now: Timestamp, at_once: bool) -> Result<(), KeyringError> {
    let file = read(folder, purpose)?.ok_or_else(|| KeyringError::Missing(purpose.name(), folder.to_owned()))?;
    let age = |stored: &Stored| Timestamp::parse(&stored.since).unwrap_or(now);
    let mut keys = vec![];
    for mut stored in file.keys {
        match stored.status {
            Status::Current => stored.status = Status::Previous,
            Status::Next if age(&stored).plus(PUBLISH) > now && !at_once => {
                return Err(KeyringError::Early(purpose.name()));
            }
            Status::Next => stored.status = Status::Current,
            Status::Previous if age(&stored).plus(RETIRE) <= now => continue,
            Status::Previous => {
                keys.push(stored);
                continue;
            }
        }
        stored.since = now.to_string();
        keys.push(stored);
    }
    keys.push(fresh(Status::Next, now)?);
    write(folder, &File { purpose, keys })
}

/// Returns every key of a purpose for display; the list is empty if there is no ring.
///
/// # Errors
/// If the ring can't be read.
pub fn list(folder: &Path, purpose: Purpose) -> Result<Vec<Listed>, KeyringError> {
    let Some(file) = read(folder, purpose)? else { return Ok(vec![]) };
    let revoked = revoked(folder)?;
    let listed = file.keys.into_iter().map(|stored| Listed {
        purpose,
        revoked: revoked.contains(&stored.kid),
        kid: stored.kid,
        status: stored.status,
        since: stored.since,
    });
    Ok(listed.collect())
}

/// Adds a key's id to the list of revoked keys.
///
/// # Errors
/// If the list can't be read or written.
pub fn revoke(folder: &Path, kid: &str) -> Result<(), KeyringError> {
    let mut kids: Vec<String> = revoked(folder)?.into_iter().chain([kid.to_owned()]).collect();
    kids.sort();
    kids.dedup();
    replace(&folder.join(REVOKED), format!("{}\n", kids.join("\n")).as_bytes())
}

/// Name of the file with the ids of revoked keys, one per line.
const REVOKED: &str = "revoked";

/// Returns the ids of revoked keys.
///
/// # Errors
/// If the list exists but can't be read.
pub fn revoked(folder: &Path) -> Result<HashSet<String>, KeyringError> {
    let path = folder.join(REVOKED);
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HashSet::new()),
        Err(error) => Err(KeyringError::Io(path, error)),
    }
}

fn path(folder: &Path, purpose: Purpose) -> PathBuf {
    folder.join(format!("{}.json", purpose.name()))
}

fn read(folder: &Path, purpose: Purpose) -> Result<Option<File>, KeyringError> {
    let path = path(folder, purpose);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(KeyringError::Io(path, error)),
    };
    match serde_json::from_slice::<File>(&text) {
        Ok(file) if file.purpose == purpose => Ok(Some(file)),
        Ok(_) | Err(_) => Err(KeyringError::Damaged(path)),
    }
}

fn write(folder: &Path, file: &File) -> Result<(), KeyringError> {
    fs::create_dir_all(folder).map_err(|error| KeyringError::Io(folder.to_owned(), error))?;
    replace(&path(folder, file.purpose), &json::canonical(file))
}

/// Replaces a file atomically and makes it readable by its owner only. After a crash the file has either the
/// old or the new content.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), KeyringError> {
    let io = |error| KeyringError::Io(path.to_owned(), error);
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    file.sync_all().map_err(io)?;
    fs::rename(&new, path).map_err(io)?;
    fs::File::open(path.parent().unwrap_or(path)).and_then(|folder| folder.sync_all()).map_err(io)
}

fn fresh(status: Status, now: Timestamp) -> Result<Stored, KeyringError> {
    // The library uses its own randomness: a key from a test's predictable `Entropy` would not be secret.
    let random = aws_lc_rs::rand::SystemRandom::new();
    let document =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).map_err(|_| KeyringError::Library)?;
    let stored = Stored { kid: String::new(), status, since: now.to_string(), private: BASE64.encode(document) };
    let signer = signer_of(&stored).ok_or(KeyringError::Library)?;
    Ok(Stored { kid: signer.kid, ..stored })
}

fn signer_of(stored: &Stored) -> Option<Signer> {
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &BASE64.decode(&stored.private).ok()?).ok()?;
    let mut signer = Signer { kid: String::new(), pair };
    // RFC 7638: only the required members, in lexical order.
    let (x, y) = coordinates(signer.point())?;
    let required = json::object([("crv", Value::from("P-256")), ("kty", Value::from("EC")), ("x", x), ("y", y)]);
    signer.kid = super::digest(&json::canonical(&required));
    Some(signer)
}

/// Returns the coordinates of an uncompressed point of P-256; `None` if it is no such point.
fn coordinates(point: &[u8]) -> Option<(Value, Value)> {
    let (x, y) = point.strip_prefix(&[4])?.split_at_checked(32)?;
    let text = |bytes: &[u8]| Value::String(BASE64.encode(bytes));
    (y.len() == 32).then(|| (text(x), text(y)))
}

fn jwk(kid: &str, point: &[u8]) -> Option<Value> {
    let (x, y) = coordinates(point)?;
    Some(json::object([
        ("alg", Value::from("ES256")),
        ("crv", Value::from("P-256")),
        ("kid", Value::from(kid)),
        ("kty", Value::from("EC")),
        ("use", Value::from("sig")),
        ("x", x),
        ("y", y),
    ]))
}
