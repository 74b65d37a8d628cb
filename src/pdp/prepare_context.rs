//! One PrepareContext from top to bottom: whether the chain may read the case, which fields and articles it
//! may see, the redaction of texts, the size limit, and the stored digests of redacted values.

mod budget;
mod case_values;
mod facts;
pub mod making;
mod texts;

use std::sync::Arc;

use crate::audit::Recorded;
use crate::audit::content::{ContextRecord, Of, redactions};
use crate::audit::record::{DecisionRecord, Record};
use crate::bundle::Bundle;
use crate::clock::Stopwatch;
use crate::content::values::ValueKey;
use crate::entropy::nonce;
use crate::json::Object;
use crate::model::answer::{Answer, Mode};
use crate::model::call::{Call, Correlation, Untrusted};
use crate::model::chain::{Caller, Chain};
use crate::model::content::{Article, Channel, Prepared, Segment};
use crate::model::refusal::Refusal;
use crate::model::roles::Roles;
use crate::model::trusted_context::TrustedContext;
use crate::pdp::Pdp;
use crate::pdp::answers::AnswerSubject;
use crate::pdp::origin::{CallInChain, Origin, Stopped};
use crate::pdp::pipeline::CallEvaluation;
use crate::pdp::prepare_context::case_values::CaseValues;
use crate::pdp::prepare_context::making::{Making, ToPrepare, Unfinished, segment};
use crate::pdp::redacted_values::{PREPARED, Remembered, context_key, values_key};
use crate::pdp::refused::Refused;
use crate::pdp::risk_state::risk_keys::by;
use crate::pdp::risk_state::risk_signals::About;
use crate::pdp::scoring::set_signals;
use crate::pdp::snapshot::Moment;
use crate::pdp::span_facts::OpenSpan;
use crate::risk_store::{Batch, Change, Tenant, Update};
use crate::telemetry::spans::CallFacts;

impl Pdp {
    /// Prepares the context that a model may see.
    ///
    /// # Errors
    /// If the request is refused; the refusal is already recorded or counted. It is UNAVAILABLE if the audit
    /// log can't be written.
    pub async fn prepare_context(
        self: &Arc<Self>,
        origin: &Origin,
        read: Result<ToPrepare, Refusal>,
    ) -> Result<Recorded<(Answer, Prepared)>, Refused> {
        let watch = Stopwatch::start();
        let moment = self.moment();
        let caller = self.admission.service(&moment, origin)?;
        let _share = self.admission.share(&moment, origin, &caller.tool_service).await?;
        let mut open =
            OpenSpan::new(watch, self.telemetry.start_decision(&origin.trace, "PrepareContext"), CallFacts::default());
        let made = match read {
            Ok(asked) => self.context_in_chain(&moment, origin, &caller, asked, &mut open.facts).await,
            Err(refusal) => Err(refusal.into()),
        };
        let (answer, prepared, records) = match made {
            Ok(made) => made,
            Err(stopped) => return self.refuse(&moment, origin, &caller, open, stopped).await,
        };
        open.stop();
        self.record_all(&moment, answer, prepared, records, open).await
    }

    async fn context_in_chain(
        self: &Arc<Self>,
        moment: &Moment,
        origin: &Origin,
        caller: &Caller,
        asked: ToPrepare,
        facts: &mut CallFacts,
    ) -> Result<(Answer, Prepared, Vec<Record>), Stopped> {
        let (roles, _) = moment.snapshot.content_roles()?;
        let development = moment.snapshot.bundle.manifest.development.as_ref();
        let chain = self.admission.delegations.chain(caller, &asked.credential, development, moment.now).await?;
        let call = reading(roles, &asked);
        let made =
            self.make_context(moment, origin, CallInChain { caller, chain: &chain, call: &call }, asked, facts).await;
        made.map_err(|refusal| Stopped::after(refusal, moment, &chain, &call))
    }

    async fn make_context(
        self: &Arc<Self>,
        moment: &Moment,
        origin: &Origin,
        CallInChain { caller, chain, call }: CallInChain<'_>,
        asked: ToPrepare,
        facts: &mut CallFacts,
    ) -> Result<(Answer, Prepared, Vec<Record>), Refusal> {
        let bundle = &moment.snapshot.bundle;
        let (roles, content) = moment.snapshot.content_roles()?;
        let mut call = call.clone();
        call.untrusted.clone_from(&asked.untrusted);
        let also = [content.field_read.as_str(), &content.field_read_masked, &content.article_read];
        let texts = facts::free_texts(bundle, content, &asked.record, &asked.articles)?;
        let about = About { also: &also, texts: &texts, ..About::default() };
        let CallEvaluation { evaluation, signals, evidence, .. } =
            self.evaluate_call(moment, roles, CallInChain { caller, chain, call: &call }, about).await?;
        *facts = self.call_facts(roles, chain, &call, &evaluation);
        let digest = self.audit.digest(&call.digest_input());
        let mut answer = self.answer(
            moment,
            evaluation,
            Mode::Enforce,
            AnswerSubject { call: Some(&call), request_id: "", display: String::new(), call_digest: digest },
        )?;
        answer.signals = Box::new(signals);
        let untrusted = asked.untrusted.len();
        let mut prepared = Prepared::default();
        let mut records = vec![];
        if answer.allows() {
            call.untrusted.clear();
            let mut trusted = moment.snapshot.nothing.clone();
            // If the checks can't be read, the policies on fields and articles see none.
            let _unread = self.add_checks(&mut trusted, roles, &call, moment.now).await;
            set_signals(&mut trusted, &bundle.policies, &answer.signals);
            let making = Making { moment: moment.clone(), chain: chain.clone(), reading: call.clone(), trusted, asked };
            let names;
            (prepared, names) = self.make(&Arc::new(making), &answer.evaluation_id).await?;
            let nonce = || nonce(self.entropy.as_ref());
            let trace_id = &origin.trace.id();
            let (evaluation_id, conversation) = (answer.evaluation_id.as_str(), call.correlation.conversation.as_str());
            let of = Of { evaluation_id, case: &call.case, conversation, trace_id };
            records = redactions(&of, &prepared.redactions, &names, nonce)?.into_iter().map(Record::Stored).collect();
        }
        let context = ContextRecord::of(&self.tokens.keys().values_id(), untrusted, &prepared);
        let record = DecisionRecord::of(&answer, caller, chain, &call, self.recorder.record_metadata(origin)?)
            .with_evidence(evidence);
        records.push(Record::Decision(Box::new(record.with_context(context))));
        Ok((answer, prepared, records))
    }

    /// Builds the context of a case that the chain may read, and stores its redacted values. Returns the
    /// context, and the names of the values that were stored or renewed, for the audit log.
    async fn make(&self, making: &Arc<Making>, evaluation_id: &str) -> Result<(Prepared, Vec<String>), Refusal> {
        let (asked, moment) = (&making.asked, &making.moment);
        let tenant = Tenant::of(&self.options.environment, &asked.case.tenant);
        let key = values_key(tenant, &asked.case.id);
        let by = Some(by(tenant, &making.chain.tool_service));
        let read = Batch { reads: vec![key], by, ..Batch::default() };
        // If the lookup fails, start without the stored values. Placeholders may then have other numbers than
        // before, but EvaluateOutput compares drafts with every value that is stored by then.
        let times: Vec<_> = match self.risk.ask(tenant, moment, &read).await {
            Ok(result) => result.memories.into_iter().flatten().collect(),
            Err(_) => vec![],
        };
        let remembered = Remembered::of(&times);
        let key_of_case = self.tokens.keys().of_case(&asked.case.tenant, &asked.case.id);
        let unfinished = Unfinished::of(CaseValues::new(key_of_case, remembered));
        // Each step waits for the caller's turn in the text pool, so that a context with many texts does not
        // delay other callers.
        let (mut unfinished, (mut lines, mut texts)) = self.step(making, unfinished, facts::facts).await?;
        let mut articles = vec![];
        for index in 0..asked.articles.len() {
            let segment;
            (unfinished, segment) =
                self.step(making, unfinished, move |making, context| facts::article(making, index, context)).await?;
            articles.extend(segment);
        }
        // Read all texts before redacting the first one, because a value that is found in one is withheld in
        // all.
        for index in 0..asked.untrusted.len() {
            let read = move |making: &Making, context: &mut Unfinished| {
                texts::read(making, index, context);
                Ok(())
            };
            (unfinished, ()) = self.step(making, unfinished, read).await?;
        }
        for index in 0..asked.untrusted.len() {
            let segment;
            (unfinished, segment) =
                self.step(making, unfinished, move |making, context| Ok(texts::text(making, index, context))).await?;
            texts.extend(segment);
        }
        let Unfinished { values: CaseValues { remembered, .. }, mut prepared, .. } = unfinished;
        let constraints = constraints(making);
        budget::fit(asked.max_bytes, &constraints, (&mut lines, articles, texts), &mut prepared);
        for segment in &mut prepared.segments {
            let case = &asked.case;
            segment.source_id = self.tokens.keys().source_id(
                &self.options.environment,
                case,
                evaluation_id,
                segment.channel,
                &segment.text,
            );
        }
        let micros = moment.snapshot.retention_micros();
        let left = remembered.until.saturating_sub(moment.now.micros());
        // Renew the stored values only if they expire within half of their period. The context must not be
        // known for longer than its values.
        let renews = left < micros / 2;
        let mut updates = remembered.updates(key, micros, renews);
        let names = updates.iter().map(|update| update.name.to_string()).collect();
        let known = context_key(tenant, &asked.case.id, evaluation_id, &self.tokens.keys().values_id());
        updates.push(Update {
            key: known,
            name: PREPARED.into(),
            change: Change::For(if renews { micros } else { left.min(micros) }),
        });
        self.risk.say(tenant, moment, Batch { updates, by, ..Batch::default() }).await;
        Ok((prepared, names))
    }

    /// Runs one step of a context on a thread for texts.
    async fn step<T: Send + 'static>(
        &self,
        making: &Arc<Making>,
        mut unfinished: Unfinished,
        step: impl FnOnce(&Making, &mut Unfinished) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<(Unfinished, T), Refusal> {
        let caller = making.chain.tool_service.clone();
        let making = Arc::clone(making);
        let stepped = self.texts.run(&caller, move || {
            let made = step(&making, &mut unfinished);
            (unfinished, made)
        });
        let (unfinished, made) = stepped.await?;
        Ok((unfinished, made?))
    }
}

/// Composes the context of a case without history, for decision tables. `trusted` must already contain what
/// was found in the texts.
///
/// # Errors
/// If the record or an article is invalid.
pub fn compose(moment: Moment, chain: Chain, trusted: TrustedContext, asked: ToPrepare) -> Result<Prepared, Refusal> {
    let (roles, _) = moment.snapshot.content_roles()?;
    let reading = reading(roles, &asked);
    let making = Making { moment, chain, reading, trusted, asked };
    let values = CaseValues::new(ValueKey::new([0; 16]), Remembered::default());
    let mut context = Unfinished::of(values);
    let (mut lines, mut texts) = facts::facts(&making, &mut context)?;
    let mut articles = vec![];
    for index in 0..making.asked.articles.len() {
        articles.extend(facts::article(&making, index, &mut context)?);
    }
    let untrusted = 0..making.asked.untrusted.len();
    untrusted.clone().for_each(|index| texts::read(&making, index, &mut context));
    texts.extend(untrusted.filter_map(|index| texts::text(&making, index, &mut context)));
    let constraints = constraints(&making);
    budget::fit(making.asked.max_bytes, &constraints, (&mut lines, articles, texts), &mut context.prepared);
    Ok(context.prepared)
}

/// Returns the free texts of a record and its articles, which are to be screened.
///
/// # Errors
/// If the record has too many values, or too long paths.
pub fn free_texts(bundle: &Bundle, record: &Object, articles: &[Article]) -> Result<Vec<Untrusted>, Refusal> {
    match bundle.roles.as_ref().and_then(|roles| roles.content.as_ref()) {
        Some(content) => facts::free_texts(bundle, content, record, articles),
        None => Ok(vec![]),
    }
}

/// Builds the call that reads a case.
fn reading(roles: &Roles, asked: &ToPrepare) -> Call {
    Call {
        model: asked.model.clone(),
        correlation: Correlation { conversation: asked.conversation.clone(), ..Correlation::default() },
        ..Call::on_case(&roles.case_read, &roles.case, asked.case.clone(), asked.credential.clone())
    }
}

/// Returns the constraints that apply to this case and step.
fn constraints(making: &Making) -> Vec<Segment> {
    let case = &making.reading.case.attributes;
    let told = making
        .moment
        .snapshot
        .bundle
        .rules
        .constraints
        .iter()
        .filter(|constraint| constraint.applies(&making.chain.step, case));
    told.map(|constraint| {
        segment(Channel::Constraint, format!("constraint:{}", constraint.id), constraint.text.clone())
    })
    .collect()
}
