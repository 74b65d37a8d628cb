//! The keys of a deployment: key rings that sign tokens, and the secret key of value digests.

use std::path::Path;

use crate::audit::key::DigestKey;
use crate::content::values::ValueKey;
use crate::jose::keyring::{Keyring, KeyringError, Purpose};
use crate::jose::mac::MacKey;
use crate::model::call::Case;
use crate::model::content::Channel;
use crate::model::text::hex;

/// Key rings that sign tokens, one for each purpose, and the key of value digests.
#[derive(Debug)]
pub struct Keys {
    pub approval: Keyring,
    /// Signs binding tokens of denials, and releases.
    pub binding: Keyring,
    /// Key of the digests of values and sources, which all replicas share.
    pub values: DigestKey,
    /// Authenticates outcome tokens of allows; derived from `values`.
    pub outcome: MacKey,
}

impl Keys {
    /// File of the key of value digests.
    pub const VALUES: &str = "values.key";

    /// Returns the key of a case's value digests. In another case, the same value has another digest.
    pub fn of_case(&self, tenant: &str, case: &str) -> ValueKey {
        ValueKey::new(self.values.derived(&format!("values\0{tenant}\0{case}")))
    }

    /// Returns the id of the key of value digests, which does not reveal the key.
    pub fn values_id(&self) -> String {
        hex(self.values.derived("id").iter().take(4))
    }

    /// Reads the keys of a deployment.
    ///
    /// # Errors
    /// If one is missing or damaged, or its current key was revoked.
    pub fn read(folder: &Path) -> Result<Self, KeyringError> {
        let (approval, binding) = (Keyring::read(folder, Purpose::Approval)?, Keyring::read(folder, Purpose::Binding)?);
        let path = folder.join(Self::VALUES);
        let values = DigestKey::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => KeyringError::Missing("value", folder.to_owned()),
            std::io::ErrorKind::InvalidData => KeyringError::Damaged(path),
            _ => KeyringError::Io(path, error),
        })?;
        let outcome = MacKey::new(&values.derived_key("outcome token"));
        Ok(Self { approval, binding, values, outcome })
    }

    /// Returns the id by which a draft's sources name a segment: a digest that only this case, evaluation and
    /// text have.
    pub(super) fn source_id(
        &self,
        environment: &str,
        case: &Case,
        evaluation_id: &str,
        channel: Channel,
        text: &str,
    ) -> String {
        let parts = [environment, &case.tenant, &case.id, evaluation_id, channel.name(), text];
        let digest = self.values.digest(&parts);
        digest.rsplit_once(':').map_or(digest.as_str(), |(_, hex)| hex).chars().take(32).collect()
    }
}
