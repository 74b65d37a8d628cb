//! One Authorize, top to bottom.

use std::sync::Arc;

use crate::approvals::store::{Burnable, Reservation};
use crate::audit::Recorded;
use crate::audit::events::Actor;
use crate::audit::record::{DecisionRecord, Record, Surroundings};
use crate::caller::Peer;
use crate::clock::Stopwatch;
use crate::entities::direct::On;
use crate::entropy::nonce;
use crate::model::answer::{Answer, Mode};
use crate::model::call::{Call, PlainCall};
use crate::model::chain::{Caller, Chain};
use crate::model::refusal::Refusal;
use crate::model::right::Right;
use crate::model::roles::Roles;
use crate::model::text::visible;
use crate::pdp::burn::{Use, used};
use crate::pdp::call_facts::facts;
use crate::pdp::judge::Judged;
use crate::pdp::present::Presented;
use crate::pdp::shares::Share;
use crate::pdp::weigh::{About, Asking, Weighed};
use crate::pdp::{Moment, Pdp, Refused, to_its_end};
use crate::telemetry::spans::{CallFacts, DecisionSpan, Trace};

/// A request as it was read.
#[derive(Clone, Debug)]
pub enum Request {
    /// A tool call.
    Call(Box<Call>),
    /// A plain Cedar request.
    Plain(Box<PlainCall>),
}

impl Request {
    fn has_texts(&self) -> bool {
        matches!(self, Self::Call(call) if !call.untrusted.is_empty())
    }
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be acted on.
    Authorize,
    /// To say whether a draft may be sent.
    EvaluateOutput,
    /// To be understood; its answer never permits.
    Explain,
    /// To say what a model may see.
    PrepareContext,
}

impl Purpose {
    fn name(self) -> &'static str {
        match self {
            Self::Authorize => "authorize",
            Self::EvaluateOutput => "evaluate_output",
            Self::Explain => "explain",
            Self::PrepareContext => "prepare_context",
        }
    }
}

/// Where a request came from, and what it is for.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The other end of the connection.
    pub peer: Peer,
    /// The trace that it belongs to.
    pub trace: Trace,
    /// What it is for.
    pub purpose: Purpose,
    /// Whether it waits for its permit, as what comes on a stream or in a batch does.
    pub waits: bool,
}

/// A request that got no answer: why, and what was proven of it before.
#[derive(Debug)]
pub(super) struct Stopped {
    /// Why.
    pub(super) refusal: Refusal,
    /// On whose behalf it came, and what it asked for.
    pub(super) proven: Option<Box<(Chain, Call)>>,
}

impl From<Refusal> for Stopped {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, proven: None }
    }
}

impl Stopped {
    /// A call was refused whose chain was proven. A step that is none of the bundle's is no name, and stands in no record.
    pub(super) fn after(refusal: Refusal, moment: &Moment, chain: &Chain, call: &Call) -> Self {
        let bundle = &moment.snapshot.bundle;
        let steps = bundle.roles.as_ref().map(|roles| bundle.policies.shapes.choices(&roles.step)).unwrap_or_default();
        let step = if steps.contains(&chain.step) { chain.step.clone() } else { String::new() };
        Self { refusal, proven: Some(Box::new((Chain { step, ..chain.clone() }, call.clone()))) }
    }
}

/// An evaluated call, before its record.
struct Evaluated {
    answer: Answer,
    record: DecisionRecord,
    facts: CallFacts,
    /// The approval that an allow uses, and the operation that uses it.
    burn: Option<Use>,
    /// What an allow without an approval adds to sums.
    reservations: Vec<Reservation>,
}

impl Pdp {
    /// Decides one call, or says why it can't, at one moment.
    ///
    /// INVARIANT: an answer leaves as [`Recorded`] alone, which only a durable record gives.
    ///
    /// # Errors
    /// A refusal, recorded or counted; or UNAVAILABLE, when the audit log can't take the record.
    pub async fn authorize(
        self: &Arc<Self>,
        moment: &Moment,
        origin: &Origin,
        read: Result<Request, Refusal>,
    ) -> Result<Recorded<Answer>, Refused> {
        let watch = Stopwatch::start();
        let mut facts = facts(moment, read.as_ref().ok());
        let span = self.telemetry.start_decision(&origin.trace, if facts.action.is_empty() { "_OTHER" } else { &facts.action });

        let (caller, share) = match self.identify(moment, origin).await {
            Ok(admitted) => admitted,
            Err(refusal) => {
                self.end_refused(span, &facts, &refusal);
                // Counted, not recorded one by one: anybody can ask faster than the log is written.
                return Err(self.stranger(origin, refusal));
            }
        };
        let request = match read {
            Ok(request) => request,
            Err(refusal) => return self.refuse(moment, origin, &caller, (span, facts), refusal.into()).await,
        };
        let Some(_flight) = self.take_off(&caller, request_id(&request)) else {
            let refusal = Refusal::invalid("request_id", "is that of a request still in flight");
            return self.refuse(moment, origin, &caller, (span, facts), refusal.into()).await;
        };
        let evaluated = match self.evaluate_in_turn(moment, origin, (&caller, &share), &request, facts.clone()).await {
            Ok(evaluated) => evaluated,
            Err(stopped) => return self.refuse(moment, origin, &caller, (span, facts), stopped).await,
        };
        let took = watch.elapsed();

        let Evaluated { answer, record, facts: known, burn, reservations } = evaluated;
        facts = known;
        let recorded = match burn {
            // To its end, even if the caller goes away: what is burned must be recorded.
            Some(used) => {
                let (pdp, moment) = (Arc::clone(self), moment.clone());
                to_its_end(async move { pdp.burn(&moment, used, answer, record).await }).await
            }
            None if reservations.is_empty() => self.record(moment, answer, record).await,
            None => self.reserve(moment, reservations, answer, record).await,
        };
        let recorded = match recorded {
            Ok(recorded) => recorded,
            Err(refused) => {
                self.telemetry.metrics.refusal(refused.refusal().kind());
                self.end_refused(span, &facts, refused.refusal());
                return Err(refused);
            }
        };
        let answer = recorded.value();
        let reason = answer.outcome.denied.map_or("", |reason| reason.name());
        self.telemetry.metrics.decision(answer.allows(), reason, answer.mode.name(), took);
        if let Some(span) = span {
            span.answered(&facts, answer);
        }
        Ok(recorded)
    }

    /// Evaluates a request when it is the caller's turn, which ends before the record is made: that takes time, but no CPU.
    async fn evaluate_in_turn(
        &self,
        moment: &Moment,
        origin: &Origin,
        (caller, share): (&Caller, &Share),
        request: &Request,
        facts: CallFacts,
    ) -> Result<Evaluated, Stopped> {
        let _turn = share.turn(request.has_texts()).await;
        match request {
            Request::Call(call) => self.evaluate(moment, origin, caller, call, facts).await,
            Request::Plain(call) => Ok(self.evaluate_plain(moment, origin, caller, call, facts)?),
        }
    }

    /// Who asks, with a share of the permits.
    async fn identify(&self, moment: &Moment, origin: &Origin) -> Result<(Caller, Share), Refusal> {
        let development = moment.snapshot.bundle.manifest.development.as_ref();
        let caller = self.callers.identify(&origin.peer, development, moment.now)?;
        let share = self.shares.take(&caller.tool_service, origin.waits).await?;
        Ok((caller, share))
    }

    /// Makes an answer's record durable.
    pub(super) async fn record(&self, moment: &Moment, answer: Answer, record: DecisionRecord) -> Result<Recorded<Answer>, Refused> {
        Ok(self.audit.append(moment.now, Record::Decision(Box::new(record))).await?.seal(answer))
    }

    /// A call in its chain: delegation, gates, what a human said, Cedar, obligations.
    async fn evaluate(
        &self,
        moment: &Moment,
        origin: &Origin,
        caller: &Caller,
        call: &Call,
        facts: CallFacts,
    ) -> Result<Evaluated, Stopped> {
        let bundle = &moment.snapshot.bundle;
        let roles = bundle.roles.as_ref().ok_or_else(|| Refusal::invalid("plain", "is required: every gate of this server is off"))?;
        let chain = self.delegations.chain(caller, &call.credential, bundle.manifest.development.as_ref(), moment.now).await?;
        let evaluated = self.evaluate_in_chain(moment, origin, (caller, &chain, call), roles, facts).await;
        evaluated.map_err(|refusal| Stopped::after(refusal, moment, &chain, call))
    }

    async fn evaluate_in_chain(
        &self,
        moment: &Moment,
        origin: &Origin,
        (caller, chain, call): Asking<'_>,
        roles: &Roles,
        facts: CallFacts,
    ) -> Result<Evaluated, Refusal> {
        let hypothetical = call.dry_run || origin.purpose == Purpose::Explain;
        if hypothetical && !self.may(moment, Right::DecisionExplain, &caller.tool_service, On::Tenant(&call.case.tenant)) {
            return Err(Refusal::Forbidden("the caller may not ask hypothetically for this tenant: no policy grants `decision.explain`"));
        }
        let about = About { hypothetical, ..About::default() };
        let Weighed { mut judged, presented, signals, .. } = self.weighed(moment, roles, (caller, chain, call), about).await?;
        let mut facts = CallFacts { principal_type: roles.agent.clone(), ..facts };
        self.known(&mut facts, chain, call, &judged);
        let sends = roles.content.as_ref().is_some_and(|content| content.send == call.action);
        if sends || chain.asserted && !self.options.development {
            // A chain that nobody signed asks no human. Nor does a draft that nobody judged: EvaluateOutput says whether a human may let it go.
            judged.outcome.missing = None;
        }
        let mode = if hypothetical { Mode::DryRun } else { Mode::Enforce };
        let reference = &call.resource.reference;
        let display = visible(&format!("{} on {} {} of case {}", call.action, reference.kind, reference.id, call.case.id));
        let digest = self.audit.digest(&call.digest_input());
        let mut answer = self.answer(moment, judged, mode, (Some(call), &call.correlation.request, display, digest))?;
        answer.signals = Box::new(signals);
        if let Presented::Usable(approval) = &presented
            && answer.allows()
        {
            answer.approval = Some(Box::new(used(approval)));
        }
        self.sign(moment, (caller, chain, call), &mut answer)?;
        let draft = self.draft_of(moment, chain, call, &presented);
        let mut reservations = if answer.allows() { self.reservations(moment, chain, call) } else { vec![] };
        let burn = match presented {
            Presented::Repeated(receipt) if answer.allows() => {
                let by = Actor::service(caller).in_trace(origin.trace.id());
                Some(Use::Again(by, receipt, std::mem::take(&mut reservations)))
            }
            Presented::Usable(approval) if answer.allows() => {
                let environment = &self.options.environment;
                let used = (Burnable::Approval, approval.id.as_str(), approval.generation.as_str());
                Some(Use::now((caller, chain, call), used, environment, std::mem::take(&mut reservations)))
            }
            Presented::Released(claims) if answer.allows() => {
                let used = (Burnable::Release, claims.jti.as_str(), claims.release.generation.as_str());
                Some(Use::now((caller, chain, call), used, &self.options.environment, std::mem::take(&mut reservations)))
            }
            Presented::Denied(_) | Presented::None | Presented::Released(_) | Presented::Repeated(_) | Presented::Usable(_) => None,
        };
        let mut record = DecisionRecord::of(&answer, caller, chain, call, self.surroundings(origin)?);
        if let Some((digest, release)) = draft {
            record = record.with_draft(&digest, &release);
        }
        Ok(Evaluated { answer, record, facts, burn, reservations })
    }

    fn evaluate_plain(
        &self,
        moment: &Moment,
        origin: &Origin,
        caller: &Caller,
        call: &PlainCall,
        facts: CallFacts,
    ) -> Result<Evaluated, Refusal> {
        let judged = self.judge_plain(moment, call)?;
        let mode = if origin.purpose == Purpose::Explain { Mode::DryRun } else { Mode::Enforce };
        let digest = self.audit.digest(&call.digest_input());
        let answer = self.answer(moment, judged, mode, (None, &call.correlation.request, String::new(), digest))?;
        let record = DecisionRecord::of_plain(&answer, caller, call, self.surroundings(origin)?);
        Ok(Evaluated { answer, record, facts, burn: None, reservations: vec![] })
    }

    pub(super) fn answer(
        &self,
        moment: &Moment,
        judged: Judged,
        mode: Mode,
        of: (Option<&Call>, &str, String, String),
    ) -> Result<Answer, Refusal> {
        let (call, request_id, display, call_digest) = of;
        let call = call.filter(|_| mode == Mode::Enforce);
        Ok(Answer {
            request_id: request_id.to_owned(),
            evaluation_id: self.evaluation_id(call, judged.outcome.denied.is_none(), moment.now)?,
            evaluated_at: moment.now,
            outcome: judged.outcome,
            gate: judged.gate,
            verdict: judged.verdict,
            mode,
            signals: Box::default(),
            display,
            call_digest,
            policy: moment.snapshot.bundle.version.clone(),
            warnings: self.options.warnings.clone(),
            approval: None,
            binding_token: String::new(),
            outcome_token: String::new(),
            repeats: None,
        })
    }

    pub(super) fn surroundings(&self, origin: &Origin) -> Result<Surroundings, Refusal> {
        let nonce = nonce(self.entropy.as_ref()).map_err(no_entropy)?;
        Ok(Surroundings { nonce, trace_id: origin.trace.id(), purpose: origin.purpose.name() })
    }

    /// Records a refusal of a known caller's request, one line each.
    pub(super) async fn refuse<T>(
        &self,
        moment: &Moment,
        origin: &Origin,
        caller: &Caller,
        (span, mut facts): (Option<DecisionSpan>, CallFacts),
        stopped: Stopped,
    ) -> Result<T, Refused> {
        if let Some((chain, call)) = stopped.proven.as_deref() {
            facts.agent.clone_from(&chain.agent);
            facts.step.clone_from(&chain.step);
            facts.tenant.clone_from(&call.case.tenant);
            facts.case = self.case_id(call);
        }
        self.end_refused(span, &facts, &stopped.refusal);
        Err(self.refused(moment, origin, Actor::service(caller), stopped).await)
    }

    pub(super) fn end_refused(&self, span: Option<DecisionSpan>, facts: &CallFacts, refusal: &Refusal) {
        tracing::debug!(name: "request.refused", kind = refusal.kind());
        if let Some(span) = span {
            span.refused(facts, refusal);
        }
    }

    /// Marks a request as in flight until the guard is dropped; `None` if one of the same id is. Requests without id are not marked.
    fn take_off(&self, caller: &Caller, request_id: &str) -> Option<Flight<'_>> {
        if request_id.is_empty() {
            return Some(Flight { pdp: self, key: None });
        }
        let key = (caller.tool_service.clone(), request_id.to_owned());
        self.in_flight.insert(key.clone()).then_some(Flight { pdp: self, key: Some(key) })
    }
}

struct Flight<'a> {
    pdp: &'a Pdp,
    key: Option<(String, String)>,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if let Some(key) = &self.key {
            self.pdp.in_flight.remove(key);
        }
    }
}

pub(super) fn no_entropy(_: crate::entropy::NoEntropy) -> Refusal {
    Refusal::Unavailable("the operating system's random source failed")
}

fn request_id(request: &Request) -> &str {
    match request {
        Request::Call(call) => &call.correlation.request,
        Request::Plain(call) => &call.correlation.request,
    }
}
