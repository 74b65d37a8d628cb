//! Loads and replaces the bundle, the certificates and the keys. A new bundle is read without delaying
//! requests and then swapped in as one `Arc`; if it is invalid, the last good one stays in force.

use std::sync::Arc;

use crate::audit::operations::PolicyRecord;
use crate::audit::record::Record;
use crate::bundle::folder::Folder;
use crate::bundle::{Bundle, LoadError, Reading};
use crate::model::refusal::Refusal;
use crate::pdp::Pdp;
use crate::pdp::kept_bundles;
use crate::pdp::keys::Keys;
use crate::pdp::refused::Refused;
use crate::pdp::snapshot::{Rejected, Snapshot};

/// Result of a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reloaded {
    /// A new bundle is in force.
    Activated,
    /// The folder's bundle was refused.
    Rejected(Arc<Rejected>),
    /// The folder contains the bundle in force, or content that another poll must confirm.
    Unchanged,
}

/// Reason for reading the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// A request of an operator, who means the folder's present content.
    Asked,
    /// The timer; the folder's present content may be half copied.
    Polled,
}

impl Pdp {
    /// Reads certificates and keys, then the folder, and activates its bundle if the digest is new. Reloads
    /// run one after the other. They run to completion even if the caller disconnects, so that no record
    /// describes a swap that did not happen. A poll activates only content that the previous poll saw, too.
    ///
    /// # Errors
    /// If the audit log can't record the result; then the bundle in force stays.
    pub async fn reload(self: &Arc<Self>, trigger: Trigger) -> Result<Reloaded, Refused> {
        let pdp = Arc::clone(self);
        let reloaded = tokio::spawn(async move { pdp.reload_once(trigger).await }).await;
        reloaded.unwrap_or(Err(Refused(Refusal::Unavailable("the reload failed: the bundle in force is unchanged"))))
    }

    async fn reload_once(&self, trigger: Trigger) -> Result<Reloaded, Refused> {
        let mut settling = self.reloading.lock().await;
        self.reload_identity().await;
        let path = self.options.bundle.clone();
        let reading = self.options.reading;
        let (current, refused) = (self.active.snapshot(), self.rejected.load_full());
        let in_force = current.bundle.version.digest.clone();
        let known = refused.as_ref().map(|rejected| rejected.digest.clone());
        let seen = (trigger == Trigger::Polled).then(|| settling.clone());
        let loading = tokio::task::spawn_blocking(move || {
            load_if_new(&path, reading, &in_force, known.as_deref(), seen.as_deref())
        });
        let found =
            loading.await.unwrap_or_else(|_| Found::Faulty(LoadError::Unreadable("reading the bundle failed".into())));
        match (found, refused) {
            (Found::InForce, refused) => {
                if refused.is_some() || trigger == Trigger::Asked {
                    tracing::info!(name: "bundle.unchanged", digest = current.bundle.version.digest, "the folder contains the bundle in force");
                }
                settling.clear();
                self.rejected.store(None);
                Ok(Reloaded::Unchanged)
            }
            (Found::Settling(digest), _) => {
                *settling = digest;
                Ok(Reloaded::Unchanged)
            }
            (Found::RefusedBefore, Some(refused)) => {
                if trigger == Trigger::Asked {
                    log_rejected(&refused, &current.bundle.version.digest);
                }
                Ok(Reloaded::Rejected(refused))
            }
            (Found::RefusedBefore, None) => Ok(Reloaded::Unchanged),
            (Found::Faulty(error), Some(refused)) if error.digest().is_empty() && refused.faults == error.lines() => {
                Ok(Reloaded::Rejected(refused))
            }
            (Found::Faulty(error), _) => self.reject(&current, &error).await,
            (Found::New(folder, bundle), _) => self.activate(&current, &folder, *bundle).await,
        }
    }

    /// Records the bundle that the server starts with.
    ///
    /// # Errors
    /// If the audit log can't be written.
    pub(crate) async fn record_first_bundle(&self) -> Result<(), Refused> {
        let moment = self.moment();
        let bundle = &moment.snapshot.bundle;
        let record = PolicyRecord::activated(&bundle.manifest.name, &bundle.version, "");
        self.audit.append(moment.now, Record::PolicyActivated(record)).await?;
        self.telemetry.metrics.activated(moment.now.seconds_and_nanos().0);
        Ok(())
    }

    async fn activate(&self, current: &Snapshot, folder: &Folder, bundle: Bundle) -> Result<Reloaded, Refused> {
        let now = self.clock.now();
        tokio::task::block_in_place(|| kept_bundles::keep(self.audit.folder(), folder, self.options.evidence_days));
        let previous = current.bundle.version.digest.as_str();
        let record = PolicyRecord::activated(&bundle.manifest.name, &bundle.version, previous);
        self.audit.append(now, Record::PolicyActivated(record)).await?;
        let digest = bundle.version.digest.clone();
        self.active.replace(Snapshot::new(bundle, now));
        self.rejected.store(None);
        self.telemetry.reload("activated", &digest, previous);
        self.telemetry.metrics.activated(now.seconds_and_nanos().0);
        tracing::info!(name: "bundle.activated", digest, previous);
        Ok(Reloaded::Activated)
    }

    async fn reject(&self, current: &Snapshot, error: &LoadError) -> Result<Reloaded, Refused> {
        let now = self.clock.now();
        let previous = current.bundle.version.digest.as_str();
        let rejected = Arc::new(Rejected { digest: error.digest().to_owned(), at: now, faults: error.lines() });
        let record = PolicyRecord::rejected(&rejected.digest, &rejected.faults, previous);
        self.audit.append(now, Record::PolicyRejected(record)).await?;
        self.telemetry.reload("rejected", &rejected.digest, previous);
        log_rejected(&rejected, previous);
        self.rejected.store(Some(Arc::clone(&rejected)));
        Ok(Reloaded::Rejected(rejected))
    }

    /// Reads certificates, authorities, issuers' keys and the server's own keys again. If one is faulty, that
    /// is logged and the previous one stays in use.
    pub async fn reload_identity(&self) {
        // Files may be slow, for example on a network file system; other requests must not wait for them.
        match tokio::task::block_in_place(|| self.admission.callers.reload()) {
            Ok(true) => tracing::info!(name: "trust.reloaded", "certificates and authorities were read again"),
            Ok(false) => {}
            Err(error) => {
                tracing::error!(name: "trust.not_reloaded", error = %error, "the previous certificates and authorities stay in use")
            }
        }
        let now = self.clock.now();
        let faults = self
            .admission
            .delegations
            .issuers
            .refresh(now)
            .await
            .into_iter()
            .chain(self.transmitters.refresh(now).await);
        for error in faults {
            tracing::error!(name: "issuer.not_reloaded", error = %error, "the issuer's previous keys stay in use");
        }
        match tokio::task::block_in_place(|| Keys::read(&self.options.keys)) {
            Ok(keys) => self.tokens.replace_keys(keys),
            Err(error) => tracing::error!(name: "keys.not_reloaded", error = %error, "the previous keys stay in use"),
        }
    }
}

fn log_rejected(rejected: &Rejected, in_force: &str) {
    let first = rejected.faults.first().map_or("", String::as_str);
    tracing::error!(name: "bundle.rejected", digest = rejected.digest, in_force, faults = rejected.faults.len(), first);
}

enum Found {
    Faulty(LoadError),
    InForce,
    New(Arc<Folder>, Box<Bundle>),
    RefusedBefore,
    /// Content that is new since the last poll and may be half copied.
    Settling(String),
}

fn load_if_new(
    path: &std::path::Path,
    reading: Reading,
    in_force: &str,
    refused: Option<&str>,
    seen: Option<&str>,
) -> Found {
    let folder = match Folder::read(path) {
        Ok(folder) => folder,
        Err(error) => return Found::Faulty(LoadError::Unreadable(error.to_string())),
    };
    let digest = folder.digest();
    if digest == in_force {
        return Found::InForce;
    }
    if Some(digest.as_str()) == refused {
        return Found::RefusedBefore;
    }
    if seen.is_some_and(|seen| seen != digest) {
        return Found::Settling(digest);
    }
    let folder = Arc::new(folder);
    match Bundle::from_folder(Arc::clone(&folder), reading) {
        Ok(bundle) => Found::New(folder, Box::new(bundle)),
        Err(error) => Found::Faulty(error),
    }
}
