//! Periodic background tasks of a running server.

use std::sync::Arc;
use std::time::Duration;

use crate::pdp::Pdp;
use crate::pdp::reload::Trigger;

/// Interval at which data that no request can use any more is removed, in seconds.
const PURGE_SECONDS: u64 = 600;
/// Interval at which each tenant's part of a Redis risk store is checked for losses, in seconds.
const TEND_SECONDS: u64 = 10;
/// Interval at which the head of the audit log is sent to its witness, in seconds.
const WITNESS_SECONDS: u64 = 10;

/// Reloads the bundle when its content changes, and on request. Changes are detected by a hash of the
/// content, which works on every file system and with the symbolic links of Kubernetes; file system events
/// don't.
pub(super) async fn watch_bundle(pdp: Arc<Pdp>, poll: Duration, mut reload: tokio::sync::mpsc::Receiver<()>) {
    let never = Duration::from_secs(u64::from(u32::MAX));
    let mut period = tokio::time::interval(if poll.is_zero() { never } else { poll });
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    period.tick().await;
    loop {
        let trigger = tokio::select! {
            _ = period.tick() => Trigger::Polled,
            Some(()) = reload.recv() => Trigger::Asked,
        };
        if let Err(refused) = pdp.reload(trigger).await {
            tracing::error!(name: "bundle.reload_failed", error = %refused.refusal());
        }
    }
}

pub(super) async fn tick(pdp: Arc<Pdp>) {
    let mut period = tokio::time::interval(Duration::from_secs(1));
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for second in 0_u64.. {
        period.tick().await;
        // First, because a record that is tried now may fit where a call's did not.
        pdp.log_readiness();
        pdp.tick().await;
        pdp.note_head().await;
        pdp.sweep().await;
        pdp.replay_lost();
        if second % PURGE_SECONDS == 0 {
            pdp.purge().await;
        }
    }
}

/// Serves a port that the others do not depend on, and logs why it failed.
pub(super) async fn logged(name: &'static str, serving: impl Future<Output = std::io::Result<()>>) {
    if let Err(error) = serving.await {
        tracing::error!(name: "port.failed", port = name, error = %error, "a port failed; the others go on");
    }
}

/// Sends the log's head to the witness. This task is separate from [`tick`], because a witness service may be
/// slow.
pub(super) async fn witness(pdp: Arc<Pdp>) {
    let mut period = tokio::time::interval(Duration::from_secs(WITNESS_SECONDS));
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        pdp.tell_witness().await;
    }
}

/// Watches a Redis risk store. This task is separate from [`tick`], which may wait for the state store.
pub(super) async fn tend(pdp: Arc<Pdp>) {
    let mut period = tokio::time::interval(Duration::from_secs(1));
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for second in 0_u64.. {
        period.tick().await;
        pdp.watch_windows().await;
        if second % TEND_SECONDS == 0 {
            pdp.tend_windows().await;
        }
    }
}

/// Refreshes the copy of the kill switches twice a second, because they must take effect on every replica
/// within a second.
pub(super) async fn refresh(pdp: Arc<Pdp>) {
    let mut period = tokio::time::interval(Duration::from_millis(500));
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        pdp.refresh().await;
    }
}
