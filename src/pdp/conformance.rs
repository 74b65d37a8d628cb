//! Conformance mode: evaluates a plain Cedar request as Cedar itself does. All gates are off, and every
//! answer warns of that.

use cedar_policy::{Context, Entities, EntityId, EntityUid, Request, Schema};

use crate::bundle::Bundle;
use crate::decision::decide;
use crate::model::answer::{Outcome, Reason};
use crate::model::call::{EntityReference, PlainCall};
use crate::model::chain::Link;
use crate::model::refusal::Refusal;
use crate::pdp::Pdp;
use crate::pdp::evaluation::Evaluation;
use crate::pdp::snapshot::{Moment, OnError};
use crate::policy::Validation;
use crate::policy::shape::type_name;

/// Maximum length of a context, in bytes.
const CONTEXT_MAX: usize = 64 * 1024;
/// Maximum length of the list of entities, in bytes. It bounds the depth of Cedar's recursion over parents.
const ENTITIES_MAX: usize = 256 * 1024;

impl Pdp {
    pub(super) fn evaluate_conformance(&self, moment: &Moment, call: &PlainCall) -> Result<Evaluation, Refusal> {
        let bundle = &moment.snapshot.bundle;
        if bundle.roles.is_some() {
            return Err(Refusal::invalid("plain", "is accepted only in conformance mode: this server's gates are on"));
        }
        evaluate_plain(bundle, call, self.options.reading.validation, self.options.on_error)
    }
}

/// Evaluates a plain request as Cedar does.
///
/// # Errors
/// If the request can't be read. Cedar's own messages are not passed on, because they repeat values.
pub fn evaluate_plain(
    bundle: &Bundle,
    call: &PlainCall,
    validation: Validation,
    on_error: OnError,
) -> Result<Evaluation, Refusal> {
    let bounds =
        [("plain.context_json", &call.context, CONTEXT_MAX), ("plain.entities_json", &call.entities, ENTITIES_MAX)];
    if let Some((field, ..)) = bounds.into_iter().find(|(_, text, most)| text.len() > *most) {
        return Err(Refusal::invalid(field, "is too long"));
    }
    let policies = &bundle.policies;
    let action = uid(&call.action, "plain.action.type")?;
    // The schema is needed to parse the context of an action that it declares. Without validation, contexts
    // of other actions are parsed as they are.
    let knows = |schema: &&Schema| validation == Validation::Strict || schema.actions().any(|known| *known == action);
    let typed = policies.schema.as_ref().filter(knows).map(|schema| (schema, &action));
    let context = match call.context.as_slice() {
        [] => Context::empty(),
        text => Context::from_json_file(text, typed).map_err(|_| unreadable("plain.context_json"))?,
    };
    let sent = match call.entities.as_slice() {
        [] => None,
        text => Some(
            Entities::from_json_file(text, policies.schema.as_ref()).map_err(|_| unreadable("plain.entities_json"))?,
        ),
    };
    let entities = sent.as_ref().unwrap_or_else(|| policies.store.all());
    let (principal, resource) =
        (uid(&call.principal, "plain.principal.type")?, uid(&call.resource, "plain.resource.type")?);
    let schema = policies.schema.as_ref().filter(|_| validation == Validation::Strict);
    let request = Request::new(principal, action, resource, context, schema);
    let request = request.map_err(|_| Refusal::invalid("plain", "does not fit the schema"))?;
    let verdict = decide(&policies.engine, &[(Link::Plain, request)], entities);
    let denied = match (verdict.has_errors() && on_error == OnError::Deny, verdict.permits()) {
        (true, _) => Some(Reason::PolicyError),
        (false, true) => None,
        (false, false) => Some(Reason::NotPermitted),
    };
    Ok(Evaluation { outcome: Outcome { denied, ..Outcome::default() }, gate: None, verdict })
}

fn uid(reference: &EntityReference, field: &str) -> Result<EntityUid, Refusal> {
    let kind = type_name(&reference.kind).ok_or_else(|| Refusal::invalid(field, "is not an entity type's name"))?;
    Ok(EntityUid::from_type_name_and_id(kind, EntityId::new(&reference.id)))
}

fn unreadable(field: &str) -> Refusal {
    Refusal::invalid(field, "is not in Cedar's JSON form")
}
