//! The `countersign approvals` command.

use std::path::{Path, PathBuf};

use super::connection::{Connection, HumanToken, read_text};
use super::{Environment, Exit, Failure, Output, client_failure, print, runtime};
use crate::api::client::{self, ClientError, Target, draft_digest};
use crate::api::v1;
use crate::model::approval::repeated;
use crate::model::text::visible;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List pending requests
    List {
        /// Include requests of every state
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        by: By,
    },
    /// Show a request: the whole call and, separately, the agent's justification
    Show {
        #[command(flatten)]
        one: One,
        /// Also show this draft, if it is the one that would be sent
        #[arg(long, value_name = "FILE")]
        draft: Option<PathBuf>,
    },
    /// Approve a request as it is displayed now
    Approve {
        #[command(flatten)]
        one: One,
        /// Approve the display with this digest, which `show` printed
        #[arg(long, value_name = "DIGEST", allow_hyphen_values = true)]
        display_digest: Option<String>,
    },
    /// Deny a request
    Deny {
        #[command(flatten)]
        one: One,
        /// Why
        #[arg(long)]
        reason: String,
        /// Arguments that you would approve, as JSON; the agent may make a new request with them
        #[arg(long, value_name = "JSON")]
        suggest: Option<String>,
    },
    /// Revoke an approval that was not consumed, or cancel a pending request
    Revoke {
        #[command(flatten)]
        one: One,
        /// Why
        #[arg(long)]
        reason: String,
    },
    /// Print every change, until interrupted
    Watch {
        #[command(flatten)]
        by: By,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct By {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    token: HumanToken,
}

#[derive(Debug, clap::Args)]
pub(super) struct One {
    /// Approval id, e.g. apr_01a206a6c48f7ff5bfb07348383015c2
    id: String,
    #[command(flatten)]
    by: By,
}

impl By {
    fn target(&self, environment: &Environment) -> Result<Target, Failure> {
        Ok(Target { token: Some(self.token.read(environment)?), ..self.connection.target(environment)? })
    }
}

pub(super) fn run(environment: &Environment, command: &Command) -> Result<Exit, Failure> {
    let (by, id) = match command {
        // These are about no single approval.
        Command::List { by, .. } | Command::Watch { by } => (by, ""),
        Command::Approve { one, .. }
        | Command::Deny { one, .. }
        | Command::Revoke { one, .. }
        | Command::Show { one, .. } => (&one.by, one.id.as_str()),
    };
    let target = by.target(environment)?;
    let runtime = runtime()?;
    let approval = match command {
        Command::List { all, .. } => {
            let state = if *all { v1::ApprovalState::Unspecified } else { v1::ApprovalState::Pending };
            let found = runtime.block_on(client::approvals(&target, state)).map_err(client_failure)?;
            let text: Vec<String> = found.iter().map(line).collect();
            let json: Vec<_> = found.iter().map(json).collect();
            environment.print(&json, if text.is_empty() { "none".to_owned() } else { text.join("\n") }.as_str());
            return Ok(Exit::Ok);
        }
        Command::Watch { .. } => {
            let see = |approval: v1::Approval| match environment.output {
                Output::Json => print(&json(&approval).to_string()),
                Output::Text => print(&line(&approval)),
            };
            runtime.block_on(client::watch(&target, see)).map_err(client_failure)?;
            return Ok(Exit::Ok);
        }
        Command::Show { .. } => runtime.block_on(client::approval(&target, id)),
        Command::Approve { display_digest, .. } => {
            let shown = display_digest.as_deref().map(read_shown).transpose()?;
            runtime.block_on(review(&target, id, v1::ReviewDecision::Approve, ("", ""), shown))
        }
        Command::Deny { reason, suggest, .. } => runtime.block_on(review(
            &target,
            id,
            v1::ReviewDecision::Deny,
            (reason, suggest.as_deref().unwrap_or("")),
            None,
        )),
        Command::Revoke { reason, .. } => runtime.block_on(client::revoke(&target, id, reason)),
    };
    let approval = approval.map_err(client_failure)?;
    let (mut json, mut text) = (json(&approval), text(&approval));
    if let Command::Show { draft: Some(file), .. } = command {
        let draft = draft_of(&approval, file)?;
        text.push_str(&format!("\nThe draft that would be sent, by its digest:\n{draft}"));
        json.as_object_mut().map(|members| members.insert("draft".to_owned(), draft.into()));
    }
    environment.print(&json, &text);
    Ok(Exit::Ok)
}

/// Reads the draft in a file if it is the approval's draft.
fn draft_of(approval: &v1::Approval, file: &Path) -> Result<String, Failure> {
    let draft = read_text(file)?;
    let invalid = |problem: String| Failure::new(Exit::Invalid, problem);
    let digest = draft_digest(&draft);
    match approval.draft_digest.as_str() {
        "" => Err(invalid("the approval's call sends no draft".to_owned())),
        known if known != digest => Err(invalid(format!(
            "`{}` is not the draft of this approval: its digest is {digest}, the approval's {known}",
            file.display()
        ))),
        _ => Ok(indented(&draft)),
    }
}

/// Returns a draft in indented lines. Characters that could mislead a reader are written out.
fn indented(draft: &str) -> String {
    draft.lines().map(|line| format!("  {}\n", visible(line))).collect()
}

/// Reads the display digest that `show` printed.
fn read_shown(digest: &str) -> Result<[u8; 32], Failure> {
    let problem = "the display digest can't be read: it must be the one that `countersign approvals show` printed";
    crate::jose::read_digest(digest).ok_or_else(|| Failure::new(Exit::Usage, problem))
}

/// Reviews the display that has this digest, or else the one that the server shows now.
async fn review(
    target: &Target,
    id: &str,
    decision: v1::ReviewDecision,
    (reason, suggested): (&str, &str),
    shown: Option<[u8; 32]>,
) -> Result<v1::Approval, ClientError> {
    let display_digest = match shown {
        Some(digest) => digest.to_vec().into(),
        None => client::approval(target, id).await?.display_digest,
    };
    let request = v1::ReviewApprovalRequest {
        id: id.to_owned(),
        decision: decision.into(),
        reason: reason.to_owned(),
        suggested_arguments_json: suggested.as_bytes().to_vec().into(),
        display_digest,
    };
    client::review(target, request).await
}

fn state(approval: &v1::Approval) -> String {
    approval.state().as_str_name().trim_start_matches("APPROVAL_STATE_").to_lowercase()
}

fn line(approval: &v1::Approval) -> String {
    format!(
        "{}  {:<10}{:<16}{}  case {}",
        approval.id,
        state(approval),
        approval.template,
        approval.action,
        approval.case_id
    )
}

fn text(approval: &v1::Approval) -> String {
    let mut text = format!("{}  {}\n\n{}", approval.id, state(approval), approval.display);
    let digest = crate::jose::encode(&approval.display_digest);
    text.push_str(&format!("\ndisplay digest {digest}\n"));
    if approval.bundles_differ {
        text.push_str(
            "replicas have different bundles in force, so one may require more of this approval than another\n",
        );
    }
    if approval.repeats > 0 {
        text.push_str(&format!("{}\n", repeated(approval.repeats)));
    }
    if !approval.approvers.is_empty() {
        text.push_str(&format!(
            "approved by {} of {}: {}\n",
            approval.approvers.len(),
            approval.quorum,
            approval.approvers.join(", ")
        ));
    }
    if let Some(answer) = &approval.customer_answer {
        let did = if answer.agrees { "agreed" } else { "refused" };
        text.push_str(&format!(
            "customer {} {did}, reported by {}\n",
            visible(&answer.customer_id),
            answer.reported_by
        ));
        return text;
    }
    if !approval.denial_reason.is_empty() {
        text.push_str(&format!("because {}\n", approval.denial_reason));
    }
    if !approval.suggested_arguments_json.is_empty() {
        text.push_str(&format!("suggested {}\n", String::from_utf8_lossy(&approval.suggested_arguments_json)));
    }
    if !approval.draft.is_empty() {
        text.push_str(&format!("\nThe draft that would be sent:\n{}", indented(&approval.draft)));
    }
    let said = approval.unverified_justification.clone().unwrap_or_default();
    text.push_str("\nWritten by the agent, not verified:\n");
    for (name, value) in [
        ("request", &said.customer_request),
        ("clause", &said.policy_clause),
        ("effect", &said.expected_effect),
        ("evidence", &said.evidence.join(", ")),
    ] {
        if !value.is_empty() {
            text.push_str(&format!("  {name:<9} {value}\n"));
        }
    }
    text
}

fn json(approval: &v1::Approval) -> serde_json::Value {
    let said = approval.unverified_justification.clone().unwrap_or_default();
    serde_json::json!({
        "id": approval.id,
        "state": state(approval),
        "template": approval.template,
        "tenant": approval.tenant,
        "case": approval.case_id,
        "action": approval.action,
        "tool_service": approval.tool_service,
        "reversibility": approval.reversibility,
        "evaluation_id": approval.evaluation_id,
        "display": approval.display,
        "draft": approval.draft,
        "draft_digest": approval.draft_digest,
        "display_digest": crate::jose::encode(&approval.display_digest),
        "quorum": approval.quorum,
        "approvers": approval.approvers,
        "customer_answer": approval.customer_answer.as_ref().map(|answer| serde_json::json!({
            "customer": answer.customer_id,
            "agrees": answer.agrees,
            "reported_by": answer.reported_by,
            "message": answer.message_id,
        })),
        "denial_reason": approval.denial_reason,
        "repeats": approval.repeats,
        "suggested_arguments": String::from_utf8_lossy(&approval.suggested_arguments_json),
        "unverified_justification": {
            "customer_request": said.customer_request, "evidence": said.evidence, "policy_clause": said.policy_clause,
            "expected_effect": said.expected_effect,
        },
    })
}
