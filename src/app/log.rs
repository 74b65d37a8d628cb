//! Compares the audit log with heads that were noted outside of it: in the replica's file, in the state store
//! and with a witness. A log without a noted head has lost lines.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::app::{Seams, StartError};
use crate::approvals::store::replica::{FILE, Replica};
use crate::approvals::store::subjects::secrets;
use crate::approvals::store::{Store, error, location};
use crate::audit::checkpoint::{CheckpointKey, KEY_FILE, VERIFIER_FILE};
use crate::audit::disk::create_folder;
use crate::audit::key::DigestKey;
use crate::audit::operations::LossRecord;
use crate::audit::record::Record;
use crate::audit::witness::Witness;
use crate::audit::{Audit, Keys, NotedHead, OpenError};
use crate::clock::Monotonic;
use crate::config::{CaseIds, Config};
use crate::entropy::{Entropy, nonce};
use crate::pdp::keys::Keys as SigningKeys;
use crate::sealing::DeploymentKeys;
use crate::telemetry::export::Telemetry;

/// Accepts that an audit log lost lines that were noted elsewhere. The loss is recorded in the log, whose
/// numbering continues after the lost lines. No server may be running on the data folder. Returns the
/// record's index; in best-effort mode it is `None`.
///
/// # Errors
/// Returns an error if no line is missing, or the log, the state or the noted heads can't be used.
pub async fn accept_loss(config: &Config, seams: Seams, reason: &str) -> Result<Option<u64>, StartError> {
    let clock = Monotonic::new(seams.clock);
    let keys = keys(config, seams.entropy.as_ref())?;
    let replica = replica(config, seams.entropy.as_ref())?;
    let witness = config.audit.witness.as_deref().map(Witness::new).transpose()?;
    let mut noted = noted(config, &replica, witness.as_ref())?;
    let options =
        location::Options { seen: replica.seen(), ..store_options(config, seams.entropy.as_ref(), &replica)? };
    let store = Store::open(options).await?;
    noted.extend(noted_in_store(&store).await?);
    let now = clock.now();
    let (audit, recovered) =
        tokio::task::block_in_place(|| Audit::open_after_loss(config.audit(), keys, seams.disk, &noted, now))?;
    let heads = noted.into_iter().map(|noted| noted.head).collect();
    let found = audit.head();
    let loss = LossRecord { reason: reason.to_owned(), found, noted: heads };
    let index = audit.append(now, Record::LossAccepted(loss)).await.map_err(|_| StartError::Record)?.index();
    if let Some(recovered) = recovered {
        audit.append(now, Record::Recovered(recovered)).await.map_err(|_| StartError::Record)?;
    }
    let audit = tokio::task::spawn_blocking(move || {
        audit.close();
        audit
    });
    let audit = audit.await.map_err(|_| StartError::Record)?;
    if let Some(head) = audit.head() {
        replica.note_head(&head).map_err(|error| StartError::Data(config.data.clone(), error))?;
        store.note_head(head.clone()).await.map_err(error::OpenError::from)?;
        if let Some(witness) = &witness {
            let told = witness.append(replica.id(), audit.log(), &head, &now.to_string()).await;
            told.map_err(|error| StartError::Data(config.data.clone(), error))?;
        }
    }
    store.close().await;
    Ok(index)
}

/// Reads this replica's own file, or creates it.
pub(super) fn replica(config: &Config, entropy: &dyn Entropy) -> Result<Replica, StartError> {
    let folder = config.data.join("state");
    let failed = |error| StartError::Data(config.data.clone(), error);
    create_folder(&folder).map_err(failed)?;
    let file = folder.join(FILE);
    // Someone who removes lines from the log could also remove this file, which notes the log's head. A new
    // file would hide the loss, so refuse to create one for a log that has lines.
    if !file.exists() && has_lines(&config.audit().folder) {
        return Err(StartError::Unnoted(file));
    }
    Replica::read_or_create(&folder, &nonce(entropy)?).map_err(failed)
}

/// Returns whether a folder contains an audit log with lines.
fn has_lines(folder: &Path) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.into_iter().any(|entry| {
        let is_segment = entry.path().extension().is_some_and(|extension| extension == "jsonl");
        is_segment && entry.metadata().is_ok_and(|file| file.len() > 0)
    })
}

/// Returns the heads of the audit log that the replica's file and the witness have.
pub(super) fn noted(
    config: &Config,
    replica: &Replica,
    witness: Option<&Witness>,
) -> Result<Vec<NotedHead>, StartError> {
    let own = replica.head().map(|head| NotedHead { head, place: format!("`{}`", replica.path().display()) });
    let witnessed = witness.map(|witness| witness.last(replica.id())).transpose();
    let place = || PathBuf::from(config.audit.witness.as_deref().unwrap_or_default());
    let witnessed = witnessed.map_err(|error| StartError::WitnessFile(place(), error))?;
    Ok(own.into_iter().chain(witnessed.flatten()).collect())
}

async fn noted_in_store(store: &Store) -> Result<Option<NotedHead>, StartError> {
    let head = store.head().await.map_err(error::OpenError::from)?;
    Ok(head.map(|head| NotedHead { head, place: "the state store".to_owned() }))
}

/// Checks that the log contains the head that the state store has noted.
///
/// # Errors
/// Returns an error if the log lacks that head, or the store does not answer.
pub(super) async fn check(config: &Config, audit: &Audit, store: &Store) -> Result<(), StartError> {
    let Some(NotedHead { head, place }) = noted_in_store(store).await? else { return Ok(()) };
    match tokio::task::block_in_place(|| audit.has(&head)) {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err(OpenError::Behind { folder: config.audit().folder.display().to_string(), index: head.index, place }
                .into())
        }
        Err(error) => Err(StartError::Data(config.data.clone(), error)),
    }
}

pub(super) fn store_options(
    config: &Config,
    entropy: &dyn Entropy,
    replica: &Replica,
) -> Result<location::Options, StartError> {
    Ok(location::Options {
        location: config.location(),
        timeout: Duration::from_millis(config.store.timeout_ms),
        connections: config.store.connections,
        replica: replica.id().to_owned(),
        boot: nonce(entropy)?,
        generation: nonce(entropy)?,
        seen: None,
        sealing: None,
        notes: config.data.join("state"),
    })
}

/// Exports each line of the log as a log event, if the settings say so.
pub(super) fn export_events(config: &Config, audit: &Audit, telemetry: &Telemetry) {
    let Some(events) = telemetry.events() else { return };
    let digests = config.telemetry.case_ids == CaseIds::Digest;
    audit.observe(move |key, line| {
        events.emit(line, |case| if digests { key.digest(&case) } else { case.to_owned() });
    });
}

/// Returns the keys from which those of data subjects are derived.
///
/// # Errors
/// Returns an error if its file can't be read.
pub(super) fn sealing(config: &Config) -> Result<DeploymentKeys, StartError> {
    let path = config.keys().join(SigningKeys::VALUES);
    Ok(DigestKey::read(&path).map_err(|error| StartError::Data(path, error))?.sealing())
}

/// Reason why evidence can't be decrypted.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceKeysError {
    #[error(
        "`{0}` is missing or can't be read, so evidence can't be decrypted: run the command with the server's settings (`--config FILE`), or name \
         its data folder in COUNTERSIGN__DATA"
    )]
    Missing(PathBuf),
    #[error("the keys of the evidence can't be read from the state store: {0}: see `store` in the settings")]
    Store(error::StoreError),
}

/// Returns the deployment's keys and the secrets of data subjects, with which evidence is decrypted. A server may be running.
///
/// # Errors
/// Returns an error if the key's file or the state store can't be read.
pub async fn evidence_keys(config: &Config) -> Result<(DeploymentKeys, HashMap<String, String>), EvidenceKeysError> {
    // There may be millions of secrets.
    const PATIENCE: Duration = Duration::from_secs(120);
    let location = config.location();
    if let location::Location::Sqlite(path) = &location
        && !path.is_file()
    {
        return Err(EvidenceKeysError::Missing(path.clone()));
    }
    let key = sealing(config).map_err(|_| EvidenceKeysError::Missing(config.keys().join(SigningKeys::VALUES)))?;
    Ok((key, secrets(&location, PATIENCE).await.map_err(EvidenceKeysError::Store)?))
}

/// Reads the keys of the log, or creates them.
pub(super) fn keys(config: &Config, entropy: &dyn Entropy) -> Result<Keys, StartError> {
    let folder = config.data.join("keys");
    let failed = |error| StartError::Data(config.data.clone(), error);
    create_folder(&folder).map_err(failed)?;
    let (mut fresh, mut seed) = ([0; 32], [0; 32]);
    entropy.fill(&mut fresh)?;
    entropy.fill(&mut seed)?;
    let digest = DigestKey::read_or_create(&folder.join("audit-digest.key"), fresh).map_err(failed)?;
    let path = folder.join(KEY_FILE);
    let checkpoint = CheckpointKey::read_or_create(&path, seed).map_err(failed)?;
    // Auditors take the public key from here; nothing that the server does depends on the file, so the folder may be read-only.
    if let Some(public) = checkpoint.verifier().map(|public| format!("{public}\n")) {
        let file = folder.join(VERIFIER_FILE);
        if std::fs::read_to_string(&file).ok().as_ref() != Some(&public)
            && let Err(error) = std::fs::write(&file, public)
        {
            tracing::warn!(name: "audit.public_key_not_written", error = %error, path = %file.display(), "the public key of the checkpoints can't be written");
        }
    }
    Ok(Keys { digest, checkpoint })
}
