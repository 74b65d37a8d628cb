//! Limits of the store: a tool service may fill half of a queue, and heavier reports replace lighter ones.

use std::time::Duration;

use countersign::approvals::store::Store;
use countersign::approvals::store::location::{Location, Options};
use countersign::approvals::store::signals::{NewSignal, SignalTaken};
use countersign::approvals::store::transitions::{NewApproval, Requested};
use countersign::model::halt::{Halt, HaltKind, Severity, SignalKind, SubjectKind};
use countersign::model::time::Timestamp;
use serde_json::json;
use sqlx::Connection as _;

use crate::burns::pending;
use crate::harness::temp;

const NOW: i64 = 1_800_000_000;

async fn open(folder: &std::path::Path) -> Store {
    let location = Location::Sqlite(folder.join("state.db"));
    let (replica, boot, generation) = ("r".into(), "b".into(), "g".into());
    let timeout = Duration::from_secs(5);
    Store::open(Options {
        location,
        timeout,
        connections: 2,
        replica,
        boot,
        generation,
        seen: None,
        sealing: Some(countersign::sealing::DeploymentKeys::new([[7; 32]])),
        notes: folder.to_owned(),
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_tool_service_may_use_half_of_an_agents_pending_requests() {
    let folder = temp();
    let store = open(folder.path()).await;
    let request = async |index: usize, tool_service: &str| {
        let mut approval = pending(index, NOW);
        approval.binding.call.case = format!("case-{index}");
        approval.binding.call.audience = tool_service.to_owned();
        let new = NewApproval {
            approval,
            draft: String::new(),
            caps: (5, 6, 6),
            cool_down: Duration::ZERO,
            record: json!({}),
        };
        store.request(new).await.unwrap()
    };
    for index in 0..3 {
        assert!(matches!(request(index, "one").await, Requested::New(_)), "{index}");
    }
    assert!(matches!(request(3, "one").await, Requested::AgentFull));
    for index in 3..6 {
        assert!(
            matches!(request(index, "two").await, Requested::New(_)),
            "{index}: another tool service used the quota"
        );
    }
    assert!(matches!(request(6, "three").await, Requested::AgentFull), "six for all tool services together");
    store.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_heavier_report_replaces_a_lighter_one_in_a_full_table() {
    let folder = temp();
    let store = open(folder.path()).await;
    let url = format!("sqlite://{}", folder.path().join("state.db").display());
    let mut connection = sqlx::AnyConnection::connect(&url).await.unwrap();
    let (since, until) = (NOW * 1_000_000, (NOW + 1000) * 1_000_000);
    let fill = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
         INSERT INTO halts (tenant, subject_kind, subject, kind, since, until)
         SELECT 'acme', 'case', 'case-' || i, CASE WHEN i = 7 THEN 'risk_low' ELSE 'risk_medium' END, {since}, {until} + i FROM n"
    );
    sqlx::query(sqlx::AssertSqlSafe(fill)).execute(&mut connection).await.unwrap();
    let report = async |event: &str, severity: Severity| {
        let (tenant, subject, subject_kind) = ("acme".into(), format!("customer-{event}"), SubjectKind::Customer);
        let (since, until) = (Timestamp::from_seconds(NOW), Timestamp::from_seconds(NOW + 3600));
        let lifted = Timestamp::default();
        let halt = Halt { tenant, subject_kind, subject, kind: HaltKind::Risk(severity), since, until, lifted };
        let (reporter, event_id, kind) = ("fraud".into(), event.to_owned(), SignalKind::FraudSuspected);
        let new = NewSignal { reporter, event_id, kind, halt, at: since, record: json!({}) };
        store.signal(new).await.unwrap()
    };
    let mut standing = async |kind: &str| {
        let count = sqlx::query_scalar::<_, i64>("SELECT COUNT(*) FROM halts WHERE kind = $1");
        count.bind(kind.to_owned()).fetch_one(&mut connection).await.unwrap()
    };
    assert!(matches!(report("first", Severity::High).await, SignalTaken::Stored(_)));
    assert_eq!((standing("risk_low").await, standing("risk_medium").await, standing("risk_high").await), (0, 9999, 1));
    assert!(matches!(report("second", Severity::Critical).await, SignalTaken::Stored(_)));
    assert_eq!((standing("risk_medium").await, standing("risk_critical").await), (9998, 1));
    // A report that is lighter than all stored ones replaces none of them.
    assert_eq!(report("third", Severity::Low).await, SignalTaken::Full);
    assert_eq!((standing("risk_low").await, standing("risk_medium").await, standing("risk_high").await), (0, 9998, 1));
    store.close().await;
}
