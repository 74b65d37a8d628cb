//! Several replicas over one PostgreSQL: what one of them does that is frozen, slow or early holds no other up.

use std::time::Duration;

use countersign::api::v1::SignalSubjectKind;
use rustix::process::Signal;
use sqlx::{Connection as _, Executor as _};

use crate::approvals::signal;
use crate::harness::people::{Desk, credit};
use crate::harness::postgres::Postgres;
use crate::harness::{App, Process, channel, config, order_check, temp};

/// A replica that is frozen within a transaction holds the row that every writer needs. Its session ends before the others give up.
#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_replica_holds_no_kill_switch_up() {
    let (postgres, folder) = (Postgres::start(), temp());
    let url = postgres.url();
    let app = App::start_with(|config, _| config.store.url = Some(url.clone())).await;
    let frozen = Process::serve(&folder.path().join("data"), &[], |command| {
        command.env("COUNTERSIGN__STORE__URL", &url);
    });
    let mut desk = Desk::new(channel(frozen.grpc).await);
    let denied = desk.ask(&credit(400)).await;

    // It has taken the row, and waits for another table: then it is frozen, and then the table is free.
    sqlx::any::install_default_drivers();
    let mut other = sqlx::AnyConnection::connect(&url).await.unwrap();
    other.execute("BEGIN").await.unwrap();
    other.execute("LOCK TABLE outbox IN EXCLUSIVE MODE").await.unwrap();
    let asking = tokio::spawn(async move { desk.request_of(denied).await.map(|_| ()) });
    let mut watching = sqlx::AnyConnection::connect(&url).await.unwrap();
    let waits = "SELECT COUNT(*) FROM pg_locks WHERE NOT granted";
    while sqlx::query_scalar::<_, i64>(waits).fetch_one(&mut watching).await.unwrap() == 0 {
        tokio::task::yield_now().await;
    }
    frozen.signal(Signal::STOP);
    other.execute("COMMIT").await.unwrap();

    let stopped = signal(&app, SignalSubjectKind::Agent, "refund-bot", "kill_switch", "event-1").await;
    assert!(stopped.is_ok(), "{stopped:?}");
    frozen.signal(Signal::CONT);
    let _unknown = asking.await.unwrap();
    app.stop().await;
}

/// A start waits for its store for a while, and says where it is and what is wrong with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_waits_for_its_store() {
    let mut postgres = Postgres::start();
    postgres.stop();
    let folder = temp();
    let mut early = config(&folder.path().join("early"));
    early.store.url = Some(postgres.url());
    early.store.start_seconds = 0;
    let error = countersign::app::build(&early, countersign::app::Seams::system(Default::default())).await.unwrap_err().to_string();
    let address = postgres.url().split(['@', '/']).nth(3).unwrap().to_owned();
    assert!(error.contains(&format!("`{address}`")) && error.contains("refused"), "{error}");

    let url = postgres.url();
    let starting = tokio::spawn(async move { App::start_with(|config, _| config.store.url = Some(url)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    postgres.resume();
    let app = starting.await.unwrap();
    assert!(app.decisions().await.authorize(order_check()).await.is_ok());
    app.stop().await;
}
