//! What runs beside requests: looks at the bundle, at the clock, at the state.

use std::sync::Arc;
use std::time::Duration;

use crate::pdp::Pdp;
use crate::pdp::reload::Trigger;

/// How often what nobody can ask for any more is removed.
const PURGE_SECONDS: u64 = 600;
/// How often each tenant's windows are looked after.
const TEND_SECONDS: u64 = 10;
/// How often the witness of the audit log is told its head.
const WITNESS_SECONDS: u64 = 10;

/// Reads the bundle when its content changes, and when asked. A hash of the content works on any file system, and with
/// Kubernetes' symbolic links; events of the file system don't.
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
        pdp.tick().await;
        pdp.note_head().await;
        pdp.sweep().await;
        pdp.replay_lost();
        if second % PURGE_SECONDS == 0 {
            pdp.purge().await;
        }
    }
}

/// Tells the witness, beside the clock's own work: a service may be slow.
pub(super) async fn witness(pdp: Arc<Pdp>) {
    let mut period = tokio::time::interval(Duration::from_secs(WITNESS_SECONDS));
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        pdp.tell_witness().await;
    }
}

/// Looks after the windows' server, beside what waits for the store.
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

/// Kill switches take effect on every replica within a second, so their copy is read twice in one.
pub(super) async fn refresh(pdp: Arc<Pdp>) {
    let mut period = tokio::time::interval(Duration::from_millis(500));
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        period.tick().await;
        pdp.refresh().await;
    }
}
