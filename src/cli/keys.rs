//! The `countersign keys` command.

use std::path::{Path, PathBuf};

use super::{Environment, Exit, Failure, print};
use crate::audit::key::DigestKey;
use crate::bundle::Bundle;
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::config::resolve::DEVELOPMENT_ISSUER;
use crate::entropy::{Entropy, SystemEntropy};
use crate::jose::keyring::{self, Keyring, KeyringError, Listed, Purpose};
use crate::model::text::known;
use crate::pdp::keys::Keys;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make the keys of a deployment: for approval and binding tokens, and for digests in the audit log and of values. Existing keys are kept
    Generate(Folder),
    /// Put the next key of each purpose into use, and publish a new next one
    Rotate {
        /// Rotate even if the next key was published less than 10 minutes ago and readers of the key set may not know it yet
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        folder: Folder,
    },
    /// Replace the keys of digests: of the audit log and, with --values, of redacted values and evidence. Servers use the new ones from
    /// their next start on; the old ones are kept to verify and decrypt what they made
    RotateDigests {
        /// Also replace values.key. Give it to all replicas before one of them is started again
        #[arg(long)]
        values: bool,
        #[command(flatten)]
        folder: Folder,
    },
    /// List the keys with purpose, status, id and time of the last change; private parts are not shown
    List(Folder),
    /// Add a key's id to the list of revoked keys; a running server applies it at its next reload
    Revoke {
        /// The id, as `keys list` shows it
        // An id may begin with a hyphen.
        #[arg(allow_hyphen_values = true)]
        kid: String,
        #[command(flatten)]
        folder: Folder,
    },
    /// Make a token that only a development server accepts: a human's own, or with --agent a delegation token
    DevToken(DevToken),
}

#[derive(Debug, clap::Args)]
pub(super) struct Folder {
    /// Folder of the keys [default: keys/ in the data folder of the settings]
    #[arg(long, value_name = "FOLDER")]
    keys: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct DevToken {
    /// The human: a supervisor of the bundle, e.g. rep-1
    #[arg(long, value_name = "ID")]
    principal: String,
    /// Agent that acts for the human, e.g. support-bot
    #[arg(long, value_name = "ID", requires = "step")]
    agent: Option<String>,
    /// With --agent: the workflow step
    #[arg(long, requires = "agent")]
    step: Option<String>,
    /// With --agent: scopes of the agent, separated by commas
    #[arg(long, value_delimiter = ',', requires = "agent")]
    scopes: Vec<String>,
    /// With --agent: the case that the token is bound to
    #[arg(long, value_name = "ID", requires = "agent")]
    case: Option<String>,
    /// Lifetime in minutes; at most 15 with --agent, at most 60 without
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..=60))]
    minutes: u16,
    #[command(flatten)]
    folder: Folder,
}

pub(super) fn run(environment: &Environment, command: &Command) -> Result<Exit, Failure> {
    let config = environment.config()?;
    let folder_of = |folder: &Folder| folder.keys.clone().unwrap_or_else(|| config.keys());
    let now = SystemClock.now();
    match command {
        Command::DevToken(asked) => return dev_token(&config, &folder_of(&asked.folder), asked),
        Command::Generate(folder) => {
            for purpose in Purpose::DEPLOYED {
                keyring::generate(&folder_of(folder), purpose, now).map_err(failed)?;
            }
            digest_key(&config.data.join("keys"), "audit-digest.key")?;
            digest_key(&folder_of(folder), Keys::VALUES)?;
            list(environment, &config, &folder_of(folder))?;
        }
        Command::List(folder) => list(environment, &config, &folder_of(folder))?,
        Command::Revoke { kid, folder } => {
            let known = listed(&folder_of(folder))?.into_iter().any(|key| key.kid == *kid);
            if !known {
                return Err(Failure::new(Exit::Usage, "no key has this id: see `countersign keys list`"));
            }
            keyring::revoke(&folder_of(folder), kid).map_err(failed)?;
            list(environment, &config, &folder_of(folder))?;
        }
        Command::Rotate { now: at_once, folder } => {
            for purpose in Purpose::DEPLOYED {
                keyring::rotate(&folder_of(folder), purpose, now, *at_once).map_err(failed)?;
            }
            list(environment, &config, &folder_of(folder))?;
        }
        Command::RotateDigests { values, folder } => {
            rotate_digests(&config.data.join("keys").join("audit-digest.key"))?;
            if *values {
                rotate_digests(&folder_of(folder).join(Keys::VALUES))?;
            }
            list(environment, &config, &folder_of(folder))?;
        }
    }
    Ok(Exit::Ok)
}

fn failed(error: KeyringError) -> Failure {
    Failure::new(Exit::Failure, error)
}

fn listed(folder: &Path) -> Result<Vec<Listed>, Failure> {
    let all: Result<Vec<Vec<Listed>>, KeyringError> = [Purpose::Approval, Purpose::Binding, Purpose::Development]
        .into_iter()
        .map(|purpose| keyring::list(folder, purpose))
        .collect();
    Ok(all.map_err(failed)?.concat())
}

/// Reads or creates a digest key. Each data folder has its own for the audit log; a deployment has one for
/// values.
fn digest_key(folder: &Path, name: &str) -> Result<DigestKey, Failure> {
    let unusable = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Failure, format!("`{}` can't be used: {error}", folder.display()))
    };
    let mut fresh = [0; 32];
    SystemEntropy.fill(&mut fresh).map_err(|error| unusable(&error))?;
    std::fs::create_dir_all(folder).map_err(|error| unusable(&error))?;
    DigestKey::read_or_create(&folder.join(name), fresh).map_err(|error| unusable(&error))
}

/// Replaces the digest key of a file.
fn rotate_digests(path: &Path) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| {
        Failure::new(Exit::Failure, format!("the key `{}` can't be replaced: {error}", path.display()))
    };
    let mut fresh = [0; 32];
    SystemEntropy.fill(&mut fresh).map_err(|error| failed(&error))?;
    DigestKey::rotate(path, fresh).map_err(|error| failed(&error))
}

fn list(environment: &Environment, config: &Config, folder: &Path) -> Result<(), Failure> {
    let keys = listed(folder)?;
    if keys.is_empty() {
        return Err(failed(KeyringError::Missing("signing", folder.to_owned())));
    }
    let line = |key: &Listed| {
        let status = if key.revoked { "revoked" } else { key.status.name() };
        format!("{:<12}{:<10}{}  {}", key.purpose.name(), status, key.kid, key.since)
    };
    let mut lines: Vec<String> = keys.iter().map(line).collect();
    for (purpose, path) in [("audit", config.data.join("keys/audit-digest.key")), ("values", folder.join(Keys::VALUES))]
    {
        if path.exists() {
            lines.push(format!("{:<12}{:<10}{}", purpose, "current", path.display()));
        }
    }
    environment.print(&keys, &lines.join("\n"));
    Ok(())
}

fn dev_token(config: &Config, folder: &Path, asked: &DevToken) -> Result<Exit, Failure> {
    if asked.agent.is_some() && asked.minutes > 15 {
        return Err(Failure::new(
            Exit::Usage,
            "a delegation token lives at most 15 minutes: use `--minutes 15` or less",
        ));
    }
    let ring = Keyring::read(folder, Purpose::Development).map_err(|error| match error {
        KeyringError::Missing(..) => Failure::new(
            Exit::Failure,
            format!(
                "there is no development server's key in `{}`: start one with `countersign serve --development`",
                folder.display()
            ),
        ),
        error => failed(error),
    })?;
    let scopes = match &asked.agent {
        Some(agent) if asked.scopes.is_empty() => scopes_of(config, agent)?,
        Some(_) | None => asked.scopes.clone(),
    };
    let now = SystemClock.now().seconds();
    let mut claims = serde_json::json!({
        "iss": DEVELOPMENT_ISSUER, "aud": config.audience(), "sub": asked.principal, "sub_profile": "user", "person": asked.principal,
        "iat": now, "nbf": now, "exp": now + i64::from(asked.minutes) * 60,
    });
    let more = match (&asked.agent, &asked.step) {
        (Some(agent), Some(step)) => serde_json::json!({
            "act": {"iss": DEVELOPMENT_ISSUER, "sub": agent, "sub_profile": "ai_agent"}, "step": step, "scope": scopes.join(" "),
        }),
        (Some(_) | None, _) => serde_json::json!({"amr": ["hwk", "mfa"]}),
    };
    if let (Some(claims), serde_json::Value::Object(more)) = (claims.as_object_mut(), more) {
        claims.extend(more);
        claims.extend(asked.case.iter().map(|case| ("case".to_owned(), case.clone().into())));
    }
    let token = ring.sign("at+jwt", &claims).map_err(|error| Failure::new(Exit::Failure, error))?;
    print(&token);
    Ok(Exit::Ok)
}

/// Returns the agent's own scopes in the bundle of the settings.
fn scopes_of(config: &Config, agent: &str) -> Result<Vec<String>, Failure> {
    let bundle = Bundle::load(&config.bundle.path, config.reading()).map_err(|_| {
        Failure::new(
            Exit::Usage,
            format!(
                "the bundle `{}` can't be read for the agent's scopes: name them with `--scopes`",
                config.bundle.path.display()
            ),
        )
    })?;
    let agents = bundle.roles.as_ref().map_or("", |roles| &roles.agent);
    let found = bundle.policies.shapes.uid(agents, agent).and_then(|uid| bundle.policies.store.get(&uid));
    let Some(found) = found else {
        let known = known(agent, bundle.policies.ids(agents));
        return Err(Failure::new(Exit::Usage, format!("the bundle has no agent `{agent}`{known}")));
    };
    Ok(found.references("scopes").iter().map(|scope| scope.id().unescaped().to_owned()).collect())
}
