//! The keys of a deployment: rings that sign tokens, and the secret that value digests are made with.

use std::path::Path;

use crate::audit::key::DigestKey;
use crate::content::values::ValueKey;
use crate::jose::keyring::{Keyring, KeyringError, Purpose};
use crate::json::Value;
use crate::model::call::Case;
use crate::model::content::Channel;

/// The rings that sign tokens, each for its own purpose.
#[derive(Debug)]
pub struct Keys {
    /// Approval tokens.
    pub approval: Keyring,
    /// Binding tokens of denials, outcome tokens of allows, releases.
    pub binding: Keyring,
    /// By what values and sources are known again, on every replica.
    pub values: DigestKey,
}

impl Keys {
    /// The file of the secret by which values are known again.
    pub const VALUES: &str = "values.key";

    /// By what the values of a case are known again: of another case, the same value is another.
    pub fn of_case(&self, tenant: &str, case: &str) -> ValueKey {
        ValueKey::new(self.values.derived(&format!("values\0{tenant}\0{case}")))
    }

    /// Which secret it is, without telling it.
    pub fn values_id(&self) -> String {
        self.values.derived("id").iter().take(4).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads the rings of a deployment, and its secret.
    ///
    /// # Errors
    /// When one is missing or damaged, or its current key was revoked.
    pub fn read(folder: &Path) -> Result<Self, KeyringError> {
        let (approval, binding) = (Keyring::read(folder, Purpose::Approval)?, Keyring::read(folder, Purpose::Binding)?);
        let path = folder.join(Self::VALUES);
        let values = DigestKey::read(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => KeyringError::Missing("value", folder.to_owned()),
            std::io::ErrorKind::InvalidData => KeyringError::Damaged(path),
            _ => KeyringError::Io(path, error),
        })?;
        Ok(Self { approval, binding, values })
    }

    /// By what a draft's sources name a segment: a digest that only this case, this evaluation and this text have.
    pub(super) fn source_id(&self, environment: &str, case: &Case, evaluation_id: &str, channel: Channel, text: &str) -> String {
        let parts = [environment, &case.tenant, &case.id, evaluation_id, channel.name(), text];
        let digest = self.values.digest(&Value::Array(parts.into_iter().map(Value::from).collect()));
        digest.rsplit(':').next().unwrap_or_default().chars().take(32).collect()
    }
}
