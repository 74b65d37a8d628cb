//! Handlers of DecisionService. Each converts its message and calls the pipeline.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::select;
use futures_util::{Stream, StreamExt};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::api::front::{self, closes, origin};
use crate::api::v1::decision_service_server::{DecisionService, DecisionServiceServer};
use crate::api::{MESSAGE_MAX, Options, convert, respond, status, texts, v1};
use crate::json::has_duplicates;
use crate::model::refusal::Refusal;
use crate::pdp::Pdp;
use crate::pdp::origin::{Origin, Purpose, Request as Read};
use crate::pdp::refused::run_to_completion;
use crate::pdp::snapshot::Moment;

/// Maximum number of calls in a batch.
const BATCH_MAX: usize = 50;
/// Number of calls of one stream that are evaluated concurrently.
const STREAM_CONCURRENCY: usize = 16;
/// Maximum age of a stream.
const STREAM_AGE: Duration = Duration::from_secs(3600);

pub(super) fn service(pdp: Arc<Pdp>, options: Options) -> DecisionServiceServer<Decisions> {
    let item_timeout = options.request_timeout;
    let stream_age = STREAM_AGE.min(options.connection_age);
    DecisionServiceServer::new(Decisions { pdp, item_timeout, stream_age }).max_decoding_message_size(MESSAGE_MAX)
}

#[derive(Clone, Debug)]
pub(super) struct Decisions {
    pdp: Arc<Pdp>,
    item_timeout: Duration,
    stream_age: Duration,
}

type Items = Pin<Box<dyn Stream<Item = Result<v1::AuthorizeStreamResponse, Status>> + Send>>;

#[tonic::async_trait]
impl DecisionService for Decisions {
    async fn authorize(
        &self,
        request: Request<v1::AuthorizeRequest>,
    ) -> Result<Response<v1::AuthorizeResponse>, Status> {
        let origin = origin(&request, Purpose::Authorize);
        let moment = self.pdp.moment();
        let recorded = self.pdp.authorize(&moment, &origin, convert::request(request.into_inner())).await;
        let recorded = recorded.map_err(|refused| status::status(refused.refusal()))?;
        Ok(Response::new(respond::response(&recorded, self.pdp.audit_log())))
    }

    async fn authorize_batch(
        &self,
        request: Request<v1::AuthorizeBatchRequest>,
    ) -> Result<Response<v1::AuthorizeBatchResponse>, Status> {
        let origin = Origin { waits: true, ..origin(&request, Purpose::Authorize) };
        let batch = request.into_inner();
        let moment = self.pdp.moment();
        if let Err(refusal) = check(&batch) {
            let refused = self.pdp.authorize(&moment, &origin, Err(refusal.clone())).await;
            return Err(status::status(refused.err().as_ref().map_or(&refusal, |refused| refused.refusal())));
        }
        let stop_on_deny = batch.semantic == i32::from(v1::BatchSemantic::DenyOnFirstDeny);
        let items = futures_util::stream::iter(batch.requests)
            .map(|item| self.item(moment.clone(), origin.clone(), item.request_id.clone(), read_item(item)));
        // `buffered` keeps the order of the requests. If a denial ends the batch, run one item at a time, so
        // that no item after the denial is evaluated.
        let mut decided = items.buffered(if stop_on_deny { 1 } else { BATCH_MAX });
        let mut results = vec![];
        while let Some(result) = decided.next().await {
            let allowed = matches!(&result.result, Some(v1::authorize_result::Result::Response(response)) if response.decision() == v1::Decision::Allow);
            results.push(result);
            if stop_on_deny && !allowed {
                break;
            }
        }
        Ok(Response::new(v1::AuthorizeBatchResponse { results }))
    }

    type AuthorizeStreamStream = Items;

    async fn authorize_stream(
        &self,
        request: Request<Streaming<v1::AuthorizeStreamRequest>>,
    ) -> Result<Response<Items>, Status> {
        let origin = Origin { waits: true, ..origin(&request, Purpose::Authorize) };
        let share = self.pdp.open_stream(&origin, true).await.map_err(|refused| status::status(refused.refusal()))?;
        let decisions = self.clone();
        let in_flight = InFlight::default();
        let (age, closes) = (tokio::time::sleep(self.stream_age), Box::pin(closes(&request)));
        let incoming = request.into_inner().take_until(select(Box::pin(age), closes));
        let answers = incoming.map(move |item| {
            // The closure owns the stream's permit, so the permit is held as long as the stream lives.
            let _open = &share;
            let (decisions, origin, in_flight) = (decisions.clone(), origin.clone(), in_flight.clone());
            async move {
                // After a read error no further item can be read, so the stream ends with that status. An absent
                // request equals an empty one, whose missing fields `convert` names.
                let request = item.map_err(|status| decisions.unreadable(&origin, status))?.request.unwrap_or_default();
                Ok(v1::AuthorizeStreamResponse {
                    result: Some(decisions.stream_item(origin, &in_flight, request).await),
                })
            }
        });
        Ok(Response::new(Box::pin(answers.buffer_unordered(STREAM_CONCURRENCY))))
    }

    async fn prepare_context(
        &self,
        request: Request<v1::PrepareContextRequest>,
    ) -> Result<Response<v1::PrepareContextResponse>, Status> {
        let origin = origin(&request, Purpose::PrepareContext);
        let prepared = self.pdp.prepare_context(&origin, texts::to_prepare(request.into_inner())).await;
        let prepared = prepared.map_err(|refused| status::status(refused.refusal()))?;
        Ok(Response::new(texts::prepared(&prepared, self.pdp.audit_log())))
    }

    async fn evaluate_output(
        &self,
        request: Request<v1::EvaluateOutputRequest>,
    ) -> Result<Response<v1::EvaluateOutputResponse>, Status> {
        let origin = origin(&request, Purpose::EvaluateOutput);
        let evaluated = self.pdp.evaluate_output(&origin, texts::to_evaluate(request.into_inner())).await;
        let evaluated = evaluated.map_err(|refused| status::status(refused.refusal()))?;
        Ok(Response::new(texts::evaluated(&evaluated, self.pdp.audit_log())))
    }

    async fn report_outcome(
        &self,
        request: Request<v1::ReportOutcomeRequest>,
    ) -> Result<Response<v1::ReportOutcomeResponse>, Status> {
        let origin = origin(&request, Purpose::Authorize);
        let read = convert::outcome(request.into_inner());
        let pdp = Arc::clone(&self.pdp);
        let reported = run_to_completion(async move { pdp.report_outcome(&origin, read).await }).await;
        let recorded = reported.map_err(|refused| status::status(refused.refusal()))?;
        let (check, expires) = recorded.value().clone().unzip();
        Ok(Response::new(v1::ReportOutcomeResponse {
            check: check.unwrap_or_default(),
            check_expires_at: expires.map(respond::time),
            audit: respond::reference(&recorded, self.pdp.audit_log()),
        }))
    }
}

impl Decisions {
    /// Evaluates one item of a batch or stream. A refusal becomes the item's error.
    async fn item(
        &self,
        moment: Moment,
        origin: Origin,
        request_id: String,
        read: Result<Read, Refusal>,
    ) -> v1::AuthorizeResult {
        let result = match self.pdp.authorize(&moment, &origin, read).await {
            Ok(recorded) => v1::authorize_result::Result::Response(respond::response(&recorded, self.pdp.audit_log())),
            Err(refused) => {
                v1::authorize_result::Result::Error(status::item_error(refused.refusal(), &shown(request_id)))
            }
        };
        v1::AuthorizeResult { result: Some(result) }
    }

    /// Counts a stream message that can't be read, and replaces tonic's status by the documented one.
    fn unreadable(&self, origin: &Origin, status: Status) -> Status {
        let status = match status.code() {
            Code::OutOfRange => front::too_large(),
            Code::Internal => front::undecodable(),
            _ => status,
        };
        front::count(&self.pdp, &origin.peer, status.code());
        status
    }

    async fn stream_item(
        &self,
        origin: Origin,
        in_flight: &InFlight,
        message: v1::AuthorizeRequest,
    ) -> v1::AuthorizeResult {
        let request_id = message.request_id.clone();
        let decided = async {
            let own = in_flight.begin(&request_id);
            let read = match (request_id.is_empty(), &own) {
                (true, _) => Err(Refusal::invalid("request_id", "is required on a stream")),
                (false, None) => {
                    Err(Refusal::invalid("request_id", "belongs to a request of this stream that is still in flight"))
                }
                (false, Some(_)) => read_item(message),
            };
            // Use the bundle that is in force now, not the one from the start of the stream.
            self.item(self.pdp.moment(), origin.clone(), request_id.clone(), read).await
        };
        match tokio::time::timeout(self.item_timeout, decided).await {
            Ok(result) => result,
            Err(_elapsed) => {
                front::count(&self.pdp, &origin.peer, Code::DeadlineExceeded);
                let error = status::item_error(&Refusal::Deadline, &shown(request_id.clone()));
                v1::AuthorizeResult { result: Some(v1::authorize_result::Result::Error(error)) }
            }
        }
    }
}

/// Ids of a stream's requests that are in flight. Answers are matched by them, so no two may be the same.
#[derive(Clone, Debug, Default)]
struct InFlight(Arc<Mutex<HashSet<String>>>);

impl InFlight {
    /// Marks an id until the guard is dropped; `None` if it is marked already.
    fn begin(&self, id: &str) -> Option<InFlightGuard> {
        self.ids().insert(id.to_owned()).then(|| InFlightGuard { all: self.clone(), id: id.to_owned() })
    }

    fn ids(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct InFlightGuard {
    all: InFlight,
    id: String,
}

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.all.ids().remove(&self.id);
    }
}

/// Converts an item. Only Authorize accepts tokens that are consumed.
fn read_item(message: v1::AuthorizeRequest) -> Result<Read, Refusal> {
    let tokens = [&message.approval_token, &message.consent_token, &message.release_token];
    match tokens.iter().all(|token| token.is_empty()) {
        true => convert::request(message),
        false => Err(Refusal::invalid("approval_token", "is not accepted in a batch or stream: use Authorize")),
    }
}

/// Returns the id if it is well-formed, so that an error may repeat it; otherwise an empty string.
fn shown(request_id: String) -> String {
    if request_id.len() <= 128 && !request_id.chars().any(char::is_control) { request_id } else { String::new() }
}

fn check(batch: &v1::AuthorizeBatchRequest) -> Result<(), Refusal> {
    if !(1..=BATCH_MAX).contains(&batch.requests.len()) {
        return Err(Refusal::invalid("requests", "must have 1 to 50 items"));
    }
    if v1::BatchSemantic::try_from(batch.semantic).is_err() {
        return Err(Refusal::invalid("semantic", "is not known to this version"));
    }
    let ids = batch.requests.iter().map(|request| request.request_id.as_str()).filter(|id| !id.is_empty());
    if has_duplicates(ids) {
        return Err(Refusal::invalid("requests", "contains the same `request_id` twice"));
    }
    Ok(())
}
