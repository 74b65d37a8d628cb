//! One PrepareContext, top to bottom: may the chain read the case; what it may see of each field, by policy; what no model may see,
//! redacted; and all of it remembered for the case, by digests.

mod budget;
mod case_values;
mod facts;
pub mod making;
mod texts;

use crate::pdp::risk_keys::by;
use std::sync::Arc;

use crate::audit::Recorded;
use crate::audit::content::{ContextRecord, Of, redactions};
use crate::audit::record::{DecisionRecord, Record};
use crate::bundle::Bundle;
use crate::clock::Stopwatch;
use crate::content::values::ValueKey;
use crate::json::Object;
use crate::model::answer::{Answer, Mode};
use crate::model::call::{Call, Correlation, EntityReference, Resource, Tokens, Untrusted};
use crate::model::chain::{Caller, Chain};
use crate::model::content::{Article, Channel, Prepared, Segment};
use crate::model::refusal::Refusal;
use crate::model::roles::Roles;
use crate::model::trusted_context::TrustedContext;
use crate::pdp::Pdp;
use crate::pdp::origin::{CallInChain, Origin, Stopped};
use crate::pdp::pipeline::CallEvaluation;
use crate::pdp::prepare_context::case_values::CaseValues;
use crate::pdp::prepare_context::making::{Making, ToPrepare, Unfinished, segment};
use crate::pdp::redacted_values::{PREPARED, Remembered, context_key, values_key};
use crate::pdp::refused::Refused;
use crate::pdp::risk_signals::About;
use crate::pdp::scoring::set_signals;
use crate::pdp::snapshot::Moment;
use crate::risk_store::{Batch, Change, Tenant, Update};
use crate::telemetry::spans::CallFacts;

impl Pdp {
    /// Prepares what a model may see.
    ///
    /// # Errors
    /// A refusal, recorded or counted; or UNAVAILABLE, when the audit log can't take the record.
    pub async fn prepare_context(
        self: &Arc<Self>,
        origin: &Origin,
        read: Result<ToPrepare, Refusal>,
    ) -> Result<Recorded<(Answer, Prepared)>, Refused> {
        let watch = Stopwatch::start();
        let moment = self.moment();
        let caller = self.service(&moment, origin)?;
        let _share = self.share(origin, &caller.tool_service).await?;
        let span = self.telemetry.start_decision(&origin.trace, "PrepareContext");
        let mut facts = CallFacts::default();
        let made = match read {
            Ok(asked) => self.context_in_chain(&moment, origin, &caller, asked, &mut facts).await,
            Err(refusal) => Err(refusal.into()),
        };
        let (answer, prepared, records) = match made {
            Ok(made) => made,
            Err(stopped) => return self.refuse(&moment, origin, &caller, (span, facts), stopped).await,
        };
        let took = watch.elapsed();
        self.record_all(&moment, (answer, prepared), records, (span, facts), took).await
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
        let chain = self.delegations.chain(caller, &asked.credential, development, moment.now).await?;
        let call = reading(roles, &asked);
        let made = self.make_context(moment, origin, CallInChain { caller, chain: &chain, call: &call }, asked, facts).await;
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
        let CallEvaluation { evaluation, signals, .. } =
            self.evaluate_call(moment, roles, CallInChain { caller, chain, call: &call }, about).await?;
        *facts = self.call_facts(roles, chain, &call, &evaluation);
        let digest = self.audit.digest(&call.digest_input());
        let mut answer = self.answer(moment, evaluation, Mode::Enforce, (Some(&call), "", String::new(), digest))?;
        answer.signals = Box::new(signals);
        let untrusted = asked.untrusted.len();
        let mut prepared = Prepared::default();
        let mut records = vec![];
        if answer.allows() {
            call.untrusted.clear();
            let mut trusted = moment.snapshot.nothing.clone();
            // Checks that can't be read are not there.
            let _unread = self.add_checks(&mut trusted, &call, moment.now).await;
            set_signals(&mut trusted, &bundle.policies, &answer.signals);
            let making = Making { moment: moment.clone(), chain: chain.clone(), reading: call.clone(), trusted, asked };
            let names;
            (prepared, names) = self.make(&Arc::new(making), &answer.evaluation_id).await?;
            // Each line has its own; the answer's record fails if there is no random source.
            let nonce = || crate::entropy::nonce(self.entropy.as_ref()).unwrap_or_default();
            let trace_id = &origin.trace.id();
            let (evaluation_id, conversation) = (answer.evaluation_id.as_str(), call.correlation.conversation.as_str());
            let of = Of { evaluation_id, case: &call.case, conversation, trace_id };
            records = redactions(&of, &prepared.redactions, &names, nonce);
        }
        let context = ContextRecord::of(&self.keys.load().values_id(), untrusted, &prepared);
        let record = DecisionRecord::of(&answer, caller, chain, &call, self.record_metadata(origin)?);
        records.push(Record::Decision(Box::new(record.with_context(context))));
        Ok((answer, prepared, records))
    }

    /// Makes the context of a case that may be read; with what is remembered of its redacted values.
    async fn make(&self, making: &Arc<Making>, evaluation_id: &str) -> Result<(Prepared, Vec<String>), Refusal> {
        let (asked, moment) = (&making.asked, &making.moment);
        let tenant = Tenant::of(&self.options.environment, &asked.case.tenant);
        let key = values_key(tenant, &asked.case.id);
        let by = Some(by(tenant, &making.chain.tool_service));
        let read = Batch { reads: vec![key], by, ..Batch::default() };
        let result = self.ask(tenant, moment, &read).await;
        // Numbers would not be the same; drafts are evaluation by what could not be known then.
        let times = result.map(|result| result.memories.into_iter().flatten().collect::<Vec<_>>()).unwrap_or_default();
        let remembered = Remembered::of(&times);
        let key_of_case = self.keys.load().of_case(&asked.case.tenant, &asked.case.id);
        let unfinished = Unfinished::of(CaseValues::new(key_of_case, remembered));
        // Each step in its turn, so that a context of many texts holds nobody else's up.
        let (mut unfinished, (mut lines, mut texts)) = self.step(making, unfinished, facts::facts).await?;
        let mut articles = vec![];
        for index in 0..asked.articles.len() {
            let segment;
            (unfinished, segment) = self.step(making, unfinished, move |making, context| facts::article(making, index, context)).await?;
            articles.extend(segment);
        }
        for index in 0..asked.untrusted.len() {
            let read = move |making: &Making, context: &mut Unfinished| {
                texts::read(making, index, context);
                Ok(())
            };
            (unfinished, ()) = self.step(making, unfinished, read).await?;
        }
        for index in 0..asked.untrusted.len() {
            let segment;
            (unfinished, segment) = self.step(making, unfinished, move |making, context| Ok(texts::text(making, index, context))).await?;
            texts.extend(segment);
        }
        let Unfinished { values: CaseValues { remembered, .. }, mut prepared, .. } = unfinished;
        let constraints = constraints(making);
        budget::fit(asked.max_bytes, &constraints, (&mut lines, articles, texts), &mut prepared);
        for segment in &mut prepared.segments {
            let case = &asked.case;
            segment.source_id = self.keys.load().source_id(&self.options.environment, case, evaluation_id, segment.channel, &segment.text);
        }
        let micros = moment.snapshot.retention_micros();
        let left = remembered.until.saturating_sub(moment.now.micros());
        // Those that count long enough stay as they are; and the context is known no longer than they are.
        let renews = left < micros / 2;
        let mut updates = remembered.updates(key, micros, renews);
        let names = updates.iter().map(|update| update.name.to_string()).collect();
        let known = context_key(tenant, &asked.case.id, evaluation_id, &self.keys.load().values_id());
        updates.push(Update { key: known, name: PREPARED.into(), change: Change::For(if renews { micros } else { left.min(micros) }) });
        self.say(tenant, moment, Batch { updates, by, ..Batch::default() }).await;
        Ok((prepared, names))
    }

    /// One step of a context, on a thread for texts.
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

/// The context of a case of which nothing is remembered, as decision tables ask for it: what was found in its texts is trusted for already.
///
/// # Errors
/// What can't be read of the record or of an article.
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

/// The free text of a record and its articles, to be screened.
///
/// # Errors
/// When the record has too many values, or too long paths.
pub fn free_texts(bundle: &Bundle, record: &Object, articles: &[Article]) -> Result<Vec<Untrusted>, Refusal> {
    match bundle.roles.as_ref().and_then(|roles| roles.content.as_ref()) {
        Some(content) => facts::free_texts(bundle, content, record, articles),
        None => Ok(vec![]),
    }
}

/// The call that reads a case.
fn reading(roles: &Roles, asked: &ToPrepare) -> Call {
    let reference = EntityReference { kind: roles.case.clone(), id: asked.case.id.clone() };
    Call {
        credential: asked.credential.clone(),
        action: roles.case_read.clone(),
        resource: Resource { reference, version: String::new(), attributes: None },
        case: asked.case.clone(),
        arguments: Object::new(),
        facts: None,
        untrusted: vec![],
        tokens: Tokens::default(),
        model: asked.model.clone(),
        correlation: Correlation { conversation: asked.conversation.clone(), ..Correlation::default() },
        dry_run: false,
    }
}

/// What the bundle tells the model of this case in this step.
fn constraints(making: &Making) -> Vec<Segment> {
    let case = &making.reading.case.attributes;
    let told = making.moment.snapshot.bundle.rules.constraints.iter().filter(|constraint| constraint.applies(&making.chain.step, case));
    told.map(|constraint| segment(Channel::Constraint, format!("constraint:{}", constraint.id), constraint.text.clone())).collect()
}
