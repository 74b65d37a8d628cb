//! A policy enforcement point (PEP) in Rust: the same billing service as `tool_service.py`, which reads and
//! writes the same lines. See docs/pep.md.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program that answers on standard output")]

use std::collections::HashMap;
use std::io::BufRead;
use std::path::PathBuf;

use clap::Parser;
use countersign::api::v1;
use countersign::api::v1::approval_service_client::ApprovalServiceClient;
use countersign::api::v1::decision_service_client::DecisionServiceClient;
use serde_json::{Value, json};
use tonic::Status;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Identity};

const FACTS: &str = r#"{"customer":"customer-1","product":"phone","region":"eu","policy_set":"standard","currency":"EUR","status":"open","refund_status":"none","identity_check":"none","fraud_check":"none"}"#;
const TICKET: &str = "My phone does not charge any more. Can you credit me?";
const ACCOUNT: &str = r#"{"tenant":"acme","customer":"customer-1"}"#;

/// A billing service that asks Countersign before each call. Reads one JSON request a line, answers with one line each.
#[derive(Parser)]
struct Arguments {
    /// HOST:PORT; may be repeated: replicas are asked in turn
    #[arg(long, required = true)]
    server: Vec<String>,
    /// PEM file of the server's authorities; without it, the client uses plaintext to a development server
    #[arg(long, requires = "certificate")]
    ca: Option<PathBuf>,
    /// PEM file of this service's X.509-SVID
    #[arg(long, requires = "private_key")]
    certificate: Option<PathBuf>,
    /// PEM file of its key
    #[arg(long)]
    private_key: Option<PathBuf>,
}

type Failure = Box<dyn std::error::Error>;

fn connect(arguments: &Arguments, server: &str) -> Result<Channel, Failure> {
    let (Some(ca), Some(certificate), Some(key)) = (&arguments.ca, &arguments.certificate, &arguments.private_key)
    else {
        return Ok(Channel::from_shared(format!("http://{server}"))?.connect_lazy());
    };
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(std::fs::read(ca)?))
        .identity(Identity::from_pem(std::fs::read(certificate)?, std::fs::read(key)?));
    Ok(Channel::from_shared(format!("https://{server}"))?.tls_config(tls)?.connect_lazy())
}

/// The tool, with one case and one account. Only `credit` changes the account.
#[derive(Default)]
struct Billing {
    channels: Vec<Channel>,
    turn: usize,
    version: u64,
    credited: i64,
    /// Denials by operation; some of them can be turned into requests for approval.
    denials: HashMap<String, v1::AuthorizeResponse>,
    /// Ids of the requested approvals by operation.
    requested: HashMap<String, String>,
    /// Token and case version of each allowed operation, because a retry must be the same call.
    decided: HashMap<String, (String, u64)>,
    /// Results by idempotency key.
    done: HashMap<String, Value>,
}

fn text(of: &Value, name: &str) -> String {
    of.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

impl Billing {
    fn channel(&mut self) -> Result<Channel, Status> {
        self.turn += 1;
        let next = self.channels.iter().cycle().nth(self.turn % self.channels.len().max(1));
        next.cloned().ok_or_else(|| Status::unavailable("no server"))
    }

    /// Asks Countersign before each call, and caches nothing. An error or a missing answer is a denial.
    async fn authorize(&mut self, call: &Value, token: String, version: u64) -> Result<v1::AuthorizeResponse, Status> {
        let digest = text(call, "agent_certificate");
        let digest: Result<Vec<u8>, _> = (0..digest.len() / 2)
            .map(|index| u8::from_str_radix(digest.get(index * 2..index * 2 + 2).unwrap_or_default(), 16))
            .collect();
        let request = v1::AuthorizeRequest {
            delegation: Some(v1::Delegation {
                credential: Some(v1::delegation::Credential::Token(text(call, "delegation"))),
                agent_certificate_sha256: digest.map_err(|_| Status::invalid_argument("agent_certificate"))?.into(),
            }),
            action: text(call, "action"),
            resource: Some(v1::Resource {
                r#ref: Some(v1::EntityReference { r#type: "Account".into(), id: "account-1".into() }),
                attributes_json: ACCOUNT.into(),
                ..Default::default()
            }),
            // Send the service's own view of the case, never the agent's.
            case: Some(v1::Case {
                id: text(call, "case"),
                version: version.to_string(),
                tenant: "acme".into(),
                attributes_json: FACTS.into(),
            }),
            arguments_json: call.get("arguments").unwrap_or(&Value::Null).to_string().into_bytes().into(),
            operation_id: if token.is_empty() { String::new() } else { text(call, "operation") },
            approval_token: token,
            // Send the customer's new text to be screened with the call, because a write needs a screening of
            // this version of the case.
            untrusted: vec![v1::UntrustedText { source: "ticket.body".into(), text: TICKET.into() }],
            model: Some(v1::Model { name: "example".into(), ..Default::default() }),
            ..Default::default()
        };
        Ok(DecisionServiceClient::new(self.channel()?).authorize(request).await?.into_inner())
    }

    async fn call(&mut self, call: &Value) -> Result<Value, Status> {
        let operation = text(call, "operation");
        let approval = self.requested.get(&operation).cloned();
        let (token, decided_on) = self.decided.get(&operation).cloned().unwrap_or((String::new(), self.version));
        let token = match &approval {
            Some(_) if !token.is_empty() => token,
            // The token is addressed to this service, and the agent must never see it.
            Some(id) => {
                let request = v1::GetApprovalRequest { id: id.clone() };
                ApprovalServiceClient::new(self.channel()?).get_approval(request).await?.into_inner().token
            }
            None => token,
        };
        let answer = self.authorize(call, token.clone(), decided_on).await?;
        if answer.decision() != v1::Decision::Allow || answer.mode() != v1::Mode::Enforce {
            // The agent may know only this much.
            let told =
                json!({"allowed": false, "reason": answer.reason_user, "next": answer.next_action().as_str_name()});
            self.denials.insert(operation, answer);
            return Ok(told);
        }
        self.decided.insert(operation, (token, decided_on));
        let mut fields = None;
        for obligation in &answer.obligations {
            let value = obligation.properties.get("value").cloned().unwrap_or_default();
            match obligation.r#type.as_str() {
                "return_only" => fields = Some(value.split(',').map(str::to_owned).collect::<Vec<_>>()),
                "route" => eprintln!("route to {value}"),
                _ => {
                    self.report(&answer, v1::OutcomeStatus::NotExecuted).await?;
                    return Ok(
                        json!({"allowed": false, "reason": "This action is not permitted.", "next": "NEXT_ACTION_NONE"}),
                    );
                }
            }
        }
        if call.get("interleaved") == Some(&Value::Bool(true)) {
            self.version += 1; // simulates a change of the case while the decision is on its way
        }
        let key = answer.approval.as_ref().map_or(answer.evaluation_id.clone(), |used| used.id.clone());
        let amount = call.pointer("/arguments/amount_minor").and_then(Value::as_i64).unwrap_or_default();
        let result = self.credit(amount, decided_on, key);
        let status = if result.is_some() { v1::OutcomeStatus::Succeeded } else { v1::OutcomeStatus::NotExecuted };
        self.report(&answer, status).await?;
        let Some(Value::Object(result)) = result else {
            return Ok(
                json!({"allowed": false, "reason": "The case has changed. Read it again.", "next": "NEXT_ACTION_RETRY"}),
            );
        };
        let shown: serde_json::Map<String, Value> =
            result.into_iter().filter(|(name, _)| fields.as_ref().is_none_or(|fields| fields.contains(name))).collect();
        Ok(json!({"allowed": true, "result": shown}))
    }

    /// Credits an amount once for each key, and only if the case still has the version that was decided on
    /// (compare and set).
    fn credit(&mut self, amount: i64, decided_on: u64, key: String) -> Option<Value> {
        if !self.done.contains_key(&key) && decided_on == self.version {
            self.version += 1;
            self.credited += amount;
            self.done.insert(key.clone(), json!({"credited": amount, "balance": self.credited}));
        }
        self.done.get(&key).cloned()
    }

    async fn report(&mut self, answer: &v1::AuthorizeResponse, status: v1::OutcomeStatus) -> Result<(), Status> {
        if answer.repeated {
            return Ok(()); // already reported with the first answer
        }
        let outcome = v1::ReportOutcomeRequest {
            evaluation_id: answer.evaluation_id.clone(),
            outcome_token: answer.outcome_token.clone(),
            status: status.into(),
            ..Default::default()
        };
        DecisionServiceClient::new(self.channel()?).report_outcome(outcome).await.map(|_| ())
    }

    async fn ask(&mut self, ask: &Value) -> Result<Value, Status> {
        let operation = text(ask, "operation");
        let denial = self.denials.get(&operation).cloned().unwrap_or_default();
        let said = ask.get("justification").cloned().unwrap_or_default();
        let request = v1::RequestApprovalRequest {
            evaluation_id: denial.evaluation_id,
            binding_token: denial.access_request.unwrap_or_default().binding_token,
            justification: Some(v1::Justification {
                customer_request: text(&said, "customer_request"),
                policy_clause: text(&said, "policy_clause"),
                expected_effect: text(&said, "expected_effect"),
                ..Default::default()
            }),
            ..Default::default()
        };
        let approval = ApprovalServiceClient::new(self.channel()?)
            .request_approval(request)
            .await?
            .into_inner()
            .approval
            .unwrap_or_default();
        self.requested.insert(operation, approval.id.clone());
        Ok(json!({"requested": approval.id}))
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments = Arguments::parse();
    let channels: Result<Vec<Channel>, Failure> =
        arguments.server.iter().map(|server| connect(&arguments, server)).collect();
    let mut billing = Billing { channels: channels?, version: 3, ..Billing::default() };
    for line in std::io::stdin().lock().lines() {
        let asked: Value = serde_json::from_str(&line?)?;
        let answered = match text(&asked, "op").as_str() {
            "call" => billing.call(&asked).await,
            "ask" => billing.ask(&asked).await,
            _ => {
                Ok(json!({"credited": billing.credited, "version": billing.version, "executions": billing.done.len()}))
            }
        };
        println!(
            "{}",
            answered.unwrap_or_else(|status| json!({"allowed": false, "error": format!("{:?}", status.code())}))
        );
    }
    Ok(())
}
