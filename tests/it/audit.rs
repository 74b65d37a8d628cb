//! The audit log: full, failing and stalling disks, torn tails, and changes that `verify` must detect.

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use countersign::api::v1;
use countersign::audit::checkpoint::CheckpointKey;
use countersign::audit::disk::{self, Segment, SystemDisk};
use countersign::audit::key::DigestKey;
use countersign::audit::operations::ResumedRecord;
use countersign::audit::record::Record;
use countersign::audit::verify::VerifyError;
use countersign::audit::{Audit, AuditDown, Durability, Keys, Options};
use countersign::clock::{Clock, SystemClock};
use countersign::model::time::Timestamp;
use tonic::Code;

use crate::harness::{App, RoomyDisk, get, lines, order_check, temp, verify, within};

/// Modes of the test disk.
const WORKS: u32 = 0;
const FULL: u32 = 1;
const TORN: u32 = 2;
const SYNC_FAILS: u32 = 3;

/// A disk that a test can make fail or stall.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    mode: Arc<AtomicU32>,
    stalled: Arc<(Mutex<bool>, Condvar)>,
    syncs: Arc<AtomicUsize>,
    free: Mutex<Option<(u64, u64)>>,
}

impl Disk {
    fn set(&self, mode: u32) {
        self.mode.store(mode, Ordering::SeqCst);
    }

    pub(crate) fn stall(&self) {
        *self.stalled.0.lock().unwrap() = true;
    }

    pub(crate) fn go_on(&self) {
        *self.stalled.0.lock().unwrap() = false;
        self.stalled.1.notify_all();
    }
}

#[derive(Debug)]
struct File {
    below: Box<dyn Segment>,
    mode: Arc<AtomicU32>,
    stalled: Arc<(Mutex<bool>, Condvar)>,
    syncs: Arc<AtomicUsize>,
}

impl Segment for File {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.mode.load(Ordering::SeqCst) {
            FULL => Err(io::Error::from_raw_os_error(28)),
            TORN => {
                self.below.write_all(&bytes[..bytes.len() / 2])?;
                Err(io::Error::from_raw_os_error(28))
            }
            _ => self.below.write_all(bytes),
        }
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut stalled = self.stalled.0.lock().unwrap();
        while *stalled {
            stalled = self.stalled.1.wait(stalled).unwrap();
        }
        drop(stalled);
        self.syncs.fetch_add(1, Ordering::SeqCst);
        match self.mode.load(Ordering::SeqCst) {
            SYNC_FAILS => Err(io::Error::from_raw_os_error(5)),
            _ => self.below.sync(),
        }
    }

    fn set_len(&mut self, length: u64) -> io::Result<()> {
        self.below.set_len(length)
    }

    fn is_at(&self, path: &Path, length: u64) -> io::Result<bool> {
        self.below.is_at(path, length)
    }
}

impl disk::Disk for Disk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn Segment>> {
        let below = SystemDisk.open(path)?;
        Ok(Box::new(File { below, mode: self.mode.clone(), stalled: self.stalled.clone(), syncs: self.syncs.clone() }))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        SystemDisk.sync_folder(path)
    }

    fn free(&self, path: &Path) -> Option<(u64, u64)> {
        self.free.lock().unwrap().or_else(|| RoomyDisk.free(path))
    }
}

async fn with_disk() -> (App, Arc<Disk>) {
    let disk = Arc::new(Disk::default());
    let seam = Arc::clone(&disk);
    (App::start_with(move |_, seams| seams.disk = seam).await, disk)
}

/// Threat 26: no answer is given without a record, and the log continues unbroken once there is space again.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_answers_and_readiness_until_there_is_space() {
    for mode in [FULL, TORN] {
        let (app, disk) = with_disk().await;
        let mut client = app.decisions().await;
        assert_eq!(client.authorize(order_check()).await.unwrap().into_inner().decision(), v1::Decision::Allow);
        disk.set(mode);
        for _ in 0..20 {
            assert_eq!(client.authorize(order_check()).await.unwrap_err().code(), Code::Unavailable);
        }
        assert_eq!(get(app.admin, "/readyz").await, (503, "audit\n".into()));
        let before = lines(&app.data).len();
        disk.set(WORKS);
        app.pdp.tick().await;
        assert_eq!(get(app.admin, "/readyz").await.0, 200);
        assert_eq!(client.authorize(order_check()).await.unwrap().into_inner().decision(), v1::Decision::Allow);
        let lines = lines(&app.data);
        assert_eq!((lines[before]["type"].as_str(), lines.len()), (Some("log.resumed"), before + 2));
        verify(&app.data.join("audit")).unwrap();
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_stops_all_answers_until_a_restart() {
    let folder = temp();
    let data = folder.path().join("data");
    let disk = Arc::new(Disk::default());
    let seam = Arc::clone(&disk);
    let app = App::start_in(&data, move |_, seams| seams.disk = seam).await;
    let mut client = app.decisions().await;
    client.authorize(order_check()).await.unwrap();
    disk.set(SYNC_FAILS);
    assert_eq!(client.authorize(order_check()).await.unwrap_err().code(), Code::Unavailable);
    // The kernel may have dropped the pages, so a successful sync now would not prove that they are on disk.
    disk.set(WORKS);
    app.pdp.tick().await;
    for _ in 0..10 {
        assert_eq!(client.authorize(order_check()).await.unwrap_err().code(), Code::Unavailable);
    }
    assert_eq!(get(app.admin, "/readyz").await.0, 503);
    app.stop().await;
    let app = App::start_in(&data, |_, _| {}).await;
    assert_eq!(
        app.decisions().await.authorize(order_check()).await.unwrap().into_inner().decision(),
        v1::Decision::Allow
    );
    verify(&data.join("audit")).unwrap();
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_waits_for_a_stalled_disk_until_its_deadline() {
    let disk = Arc::new(Disk::default());
    let seam = Arc::clone(&disk);
    let app = App::start_with(move |config, seams| {
        config.limits.request_timeout_ms = 50;
        seams.disk = seam;
    })
    .await;
    let mut client = app.decisions().await;
    disk.stall();
    for _ in 0..5 {
        assert_eq!(client.authorize(order_check()).await.unwrap_err().code(), Code::DeadlineExceeded);
    }
    disk.go_on();
    assert_eq!(client.authorize(order_check()).await.unwrap().into_inner().decision(), v1::Decision::Allow);
    app.pdp.tick().await;
    let lines = lines(&app.data);
    // The decisions were recorded late, and the five missed deadlines are recorded, too.
    assert_eq!(lines.iter().filter(|line| line["type"] == "decision").count(), 6);
    let cut_off = lines.iter().filter(|line| line["type"] == "refusals" && line["kind"] == "deadline_exceeded");
    assert_eq!(cut_off.map(|line| line["count"].as_u64().unwrap()).sum::<u64>(), 5);
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_calls_share_one_sync() {
    let (app, disk) = with_disk().await;
    let client = app.decisions().await;
    disk.stall();
    let before = disk.syncs.load(Ordering::SeqCst);
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.authorize(order_check()).await.unwrap() })
        })
        .collect();
    // One batch is in the stalled sync; records that arrive meanwhile form the next batches.
    within("first batch on the disk", async {
        while lines_on_disk(&app) < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    disk.go_on();
    for call in calls {
        call.await.unwrap();
    }
    assert!(disk.syncs.load(Ordering::SeqCst) - before < 64, "one sync per record");
    app.stop().await;
}

/// Counts the complete lines. The writer is still writing, so the last line may be partial.
fn lines_on_disk(app: &App) -> usize {
    let text = std::fs::read(app.data.join("audit/seg-00000000000000000000.jsonl")).unwrap();
    text.iter().filter(|byte| **byte == b'\n').count()
}

#[tokio::test(flavor = "multi_thread")]
async fn best_effort_mode_answers_without_waiting_and_marks_every_line_and_answer() {
    let disk = Arc::new(Disk::default());
    let seam = Arc::clone(&disk);
    let app = App::start_with(move |config, seams| {
        config.audit.mode = countersign::audit::Durability::BestEffort;
        seams.disk = seam;
    })
    .await;
    disk.stall();
    let mut client = app.decisions().await;
    let response = client.authorize(order_check()).await.unwrap().into_inner();
    assert_eq!(response.decision(), v1::Decision::Allow);
    assert_eq!(response.warnings, ["audit_best_effort", "development_mode"]);
    assert_eq!(response.audit, None, "no index before the line is written");
    disk.go_on();
    let data = app.data.clone();
    let _folder = app.stop().await;
    assert!(lines(&data).iter().all(|line| line["durability"] == "best_effort"));
    assert_eq!(verify(&data.join("audit")).unwrap().best_effort, lines(&data).len() as u64);
}

/// A clock that does not move, so that no sync is due.
#[derive(Debug)]
struct Still(Timestamp);

impl Clock for Still {
    fn now(&self) -> Timestamp {
        self.0
    }
}

/// A line that claims more would make a torn write look like damage, and a segment without the end of the one before it can't be read.
#[tokio::test(flavor = "multi_thread")]
async fn in_best_effort_mode_lines_claim_only_what_is_on_disk_and_a_closed_segment_is() {
    for segment_mib in [256, 0] {
        let app = App::start_with(move |config, seams| {
            config.audit.mode = countersign::audit::Durability::BestEffort;
            config.audit.segment_mib = segment_mib;
            seams.clock = Box::new(Still(SystemClock.now()));
        })
        .await;
        let mut client = app.decisions().await;
        for _ in 0..3 {
            client.authorize(order_check()).await.unwrap();
        }
        let data = app.data.clone();
        let _folder = app.stop().await;
        let lines = lines(&data);
        assert!(lines.len() >= 5);
        for line in &lines {
            let before = line["seq"].as_u64().unwrap().checked_sub(1);
            let claimed = line["durable"].as_u64();
            match segment_mib {
                // Each segment has the lines of one batch, and the batch before it was synced.
                0 => assert!(
                    claimed <= before && (claimed.is_some() || before.is_none_or(|before| before < 2)),
                    "{line}"
                ),
                _ => assert_eq!(claimed, None, "{line}"),
            }
        }
        verify(&data.join("audit")).unwrap();
    }
}

pub(crate) fn log_keys() -> Keys {
    let checkpoint = CheckpointKey::new([9; 32]).unwrap();
    Keys { digest: DigestKey::new([7; 32]), checkpoint }
}

/// An answer whose record was taken has left, so the record must not vanish with the queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_best_effort_log_writes_everything_that_it_took_before_it_closed() {
    let folder = temp();
    let options = Options {
        folder: folder.path().join("audit"),
        log: "log".into(),
        durability: Durability::BestEffort,
        segment_bytes: 1 << 28,
        segment_seconds: 86_400,
    };
    let now = SystemClock.now();
    let (audit, _) = Audit::open(options, log_keys(), Arc::new(SystemDisk), &[], now).unwrap();
    let audit = Arc::new(audit);
    let append = |audit: Arc<Audit>| async move {
        let mut taken = 0;
        loop {
            match audit.append(now, Record::Resumed(ResumedRecord { failures: 0 })).await {
                Ok(_) => taken += 1,
                Err(AuditDown::Full) => {}
                Err(AuditDown::Failed) => return taken,
            }
            tokio::task::yield_now().await;
        }
    };
    let appending: Vec<_> = (0..4).map(|_| tokio::spawn(append(Arc::clone(&audit)))).collect();
    within("thousand lines", async {
        while audit.last_index() < 1000 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let closing = Arc::clone(&audit);
    tokio::task::spawn_blocking(move || closing.close()).await.unwrap();
    let mut taken = 0;
    for appending in appending {
        taken += within("refusal of the closed log", appending).await.unwrap();
    }
    let text = std::fs::read(folder.path().join("audit/seg-00000000000000000000.jsonl")).unwrap();
    assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), taken);
    assert_eq!(audit.lost(), 0);
}

/// Refusals of unauthenticated peers may not use the last fifth of the disk.
#[tokio::test(flavor = "multi_thread")]
async fn unauthenticated_peers_cannot_fill_the_disk() {
    let (app, disk) = with_disk().await;
    let strangers = || lines(&app.data).iter().filter(|line| line["type"] == "refusals").count();
    *disk.free.lock().unwrap() = Some((19, 100));
    for _ in 0..1000 {
        app.pdp.count_unauthenticated("192.0.2.1".into(), "unauthenticated");
    }
    app.pdp.tick().await;
    assert_eq!(strangers(), 0);
    let metrics = app.pdp.telemetry().metrics_text().unwrap();
    assert!(metrics.contains("countersign_audit_suppressed_total{otel_scope_name=\"countersign\"} 1000"));
    *disk.free.lock().unwrap() = Some((21, 100));
    app.pdp.count_unauthenticated("192.0.2.1".into(), "unauthenticated");
    app.pdp.tick().await;
    assert_eq!(strangers(), 1);
    // A known caller's call is still evaluated and recorded.
    *disk.free.lock().unwrap() = Some((1, 100));
    assert_eq!(
        app.decisions().await.authorize(order_check()).await.unwrap().into_inner().decision(),
        v1::Decision::Allow
    );
    app.stop().await;
}

/// Writes a log with this number of decisions and returns the folder of the stopped server.
async fn log(decisions: usize) -> tempfile::TempDir {
    let folder = temp();
    let data = folder.path().join("data");
    let app = App::start_in(&data, |_, _| {}).await;
    let mut client = app.decisions().await;
    for _ in 0..decisions {
        client.authorize(order_check()).await.unwrap();
    }
    app.stop().await;
    folder
}

fn segment(data: &Path) -> std::path::PathBuf {
    data.join("data/audit/seg-00000000000000000000.jsonl")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_is_moved_to_another_file_and_recorded() {
    for tail in [&b"{\"v\":1,\"seq\":"[..], b"\0\0\0\0\0\0", b"not json\n", b"{}\n{}\n"] {
        let folder = log(3).await;
        let (data, segment) = (folder.path().join("data"), segment(folder.path()));
        let whole = std::fs::read(&segment).unwrap();
        std::fs::write(&segment, [&whole, tail].concat()).unwrap();
        let app = App::start_in(&data, |_, _| {}).await;
        app.stop().await;
        let lines = lines(&data);
        let recovered = lines.iter().find(|line| line["type"] == "log.recovered").unwrap();
        assert_eq!(recovered["bytes"], tail.len());
        let kept = data.join("audit").join(recovered["kept_in"].as_str().unwrap());
        assert_eq!(std::fs::read(kept).unwrap(), tail, "nothing is lost");
        assert!(std::fs::read(&segment).unwrap().starts_with(&whole), "nothing durable was cut");
        verify(&data.join("audit")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_durable_line_prevents_the_start() {
    let folder = log(5).await;
    let segment = segment(folder.path());
    let text = std::fs::read_to_string(&segment).unwrap();
    std::fs::write(&segment, text.replacen("\"decision\":\"allow\"", "\"decision\":\"DENY!\"", 1)).unwrap();
    let error = refused(&folder.path().join("data")).await;
    assert!(error.contains("was not written with this deployment's key") && error.contains(":3"), "{error}");
    assert_eq!(std::fs::read_to_string(&segment).unwrap().len(), text.len(), "nothing was cut");
}

/// Starts on a data folder that must be refused, and returns the error.
async fn refused(data: &Path) -> String {
    let seams = countersign::app::Seams::system(Default::default());
    countersign::app::build(&crate::harness::config(data), seams).await.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_must_continue_the_previous_segment() {
    let folder = log(3).await;
    let data = folder.path().join("data");
    let first = segment(folder.path());
    let count = lines(&data).len();
    // A crash between creating a segment and its first write leaves an empty segment.
    let second = data.join(format!("audit/seg-{count:020}.jsonl"));
    std::fs::write(&second, "").unwrap();
    App::start_in(&data, |_, _| {}).await.stop().await;
    verify(&data.join("audit")).unwrap();
    assert!(std::fs::metadata(&second).unwrap().len() > 0);
    // If the previous segment is missing or ends elsewhere, the start is refused and nothing is cut.
    let (whole, written) = (std::fs::read(&first).unwrap(), std::fs::read(&second).unwrap());
    for damage in [None, Some(&whole[..whole.len() - 1]), Some(&whole[..whole.len() / 2]), Some(&b""[..])] {
        match damage {
            None => std::fs::remove_file(&first).unwrap(),
            Some(bytes) => std::fs::write(&first, bytes).unwrap(),
        }
        assert!(refused(&data).await.contains("the audit log is damaged at"));
        assert_eq!(std::fs::read(&second).unwrap(), written);
        std::fs::write(&first, &whole).unwrap();
    }
    App::start_in(&data, |_, _| {}).await.stop().await;
    verify(&data.join("audit")).unwrap();
}

/// Threat 23: the clock is behind the last record.
#[tokio::test(flavor = "multi_thread")]
async fn a_clock_behind_the_last_record_prevents_the_start_and_a_step_back_ends_readiness() {
    let folder = log(1).await;
    let data = folder.path().join("data");
    let hands = Hands::default();
    let now = countersign::clock::Clock::now(&countersign::clock::SystemClock).micros();
    hands.0.store(now - 3_600_000_000, Ordering::SeqCst);
    let mut seams = countersign::app::Seams::system(Default::default());
    seams.clock = Box::new(hands.clone());
    let error = countersign::app::build(&crate::harness::config(&data), seams).await.unwrap_err().to_string();
    assert!(error.contains("the system clock is more than 60 s behind the last audit record"), "{error}");
    hands.0.store(now, Ordering::SeqCst);
    let seam = hands.clone();
    let app = App::start_in(&data, move |_, seams| seams.clock = Box::new(seam)).await;
    assert_eq!(get(app.admin, "/readyz").await.0, 200);
    hands.0.store(now - 6_000_000, Ordering::SeqCst);
    app.pdp.tick().await;
    assert_eq!(get(app.admin, "/readyz").await, (503, "clock\n".into()));
    hands.0.store(now + 1_000_000, Ordering::SeqCst);
    app.pdp.tick().await;
    assert_eq!(get(app.admin, "/readyz").await.0, 200);
    app.stop().await;
}

/// A clock that the test sets.
#[derive(Clone, Debug, Default)]
struct Hands(Arc<std::sync::atomic::AtomicI64>);

impl countersign::clock::Clock for Hands {
    fn now(&self) -> countersign::model::time::Timestamp {
        countersign::model::time::Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_one_server_can_use_a_data_folder() {
    let app = App::start().await;
    let config = crate::harness::config(&app.data);
    let error =
        countersign::app::build(&config, countersign::app::Seams::system(Default::default())).await.unwrap_err();
    assert!(error.to_string().contains("is in use by another server"), "{error}");
    app.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rotated_segments_form_one_hash_chain() {
    let folder = temp();
    let data = folder.path().join("data");
    let app = App::start_in(&data, |config, _| config.audit.segment_mib = 1).await;
    let mut client = app.decisions().await;
    let mut batches = 0;
    let segments = || {
        let files = std::fs::read_dir(data.join("audit")).unwrap();
        files.filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|end| end == "jsonl")).count()
    };
    while segments() < 3 {
        let batch = v1::AuthorizeBatchRequest { requests: vec![order_check(); 50], semantic: 0 };
        client.authorize_batch(batch).await.unwrap();
        batches += 1;
        assert!(batches < 200, "no rotation after {batches} batches");
    }
    app.stop().await;
    let report = verify(&data.join("audit")).unwrap();
    assert!(report.segments >= 3);
    assert_eq!(report.decisions, batches * 50);
    // A restart continues the log after the rotated segments.
    let app = App::start_in(&data, |_, _| {}).await;
    app.stop().await;
    assert!(verify(&data.join("audit")).unwrap().lines > report.lines);
    // Without the newest segment the log does not reach its last checkpoint; without the first one its chain is broken.
    let second = std::fs::read_dir(data.join("audit"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "jsonl"))
        .max()
        .unwrap();
    std::fs::remove_file(&second).unwrap();
    let error = verify(&data.join("audit")).unwrap_err().to_string();
    assert!(error.contains("lines were cut off"), "{error}");
    std::fs::remove_file(segment(folder.path())).unwrap();
    assert!(matches!(verify(&data.join("audit")), Err(VerifyError::Broken(_))));
}

/// Threat 25: flipped, deleted, reordered, inserted and repeated lines are detected.
#[tokio::test(flavor = "multi_thread")]
async fn every_change_of_a_closed_log_is_detected() {
    let folder = log(8).await;
    let segment = segment(folder.path());
    let audit = folder.path().join("data/audit");
    let text = std::fs::read_to_string(&segment).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let joined = |lines: &[&str]| {
        let mut text = String::new();
        lines.iter().for_each(|line| writeln!(text, "{line}").unwrap());
        text
    };
    let mut deleted = lines.clone();
    deleted.remove(4);
    let mut swapped = lines.clone();
    swapped.swap(4, 5);
    let mut repeated = lines.clone();
    repeated.insert(5, lines[4]);
    let flipped = text.replacen("\"decision\":\"allow\"", "\"decision\":\"denyy\"", 1);
    let spaced = text.replacen("{\"action\"", "{ \"action\"", 1);
    let renumbered = text.replacen("\"seq\":5", "\"seq\":50", 1);
    let headless = joined(&lines[1..]);
    for (change, changed) in [
        ("deleted", joined(&deleted)),
        ("swapped", joined(&swapped)),
        ("repeated", joined(&repeated)),
        ("flipped", flipped),
        ("spaced", spaced),
        ("renumbered", renumbered),
        ("headless", headless),
        ("blank line", text.replacen('\n', "\n\n", 1)),
    ] {
        std::fs::write(&segment, changed).unwrap();
        assert!(matches!(verify(&audit), Err(VerifyError::Broken(_))), "{change}");
    }
    // A flipped bit in any byte is detected; every 37th byte is tried.
    for at in (0..text.len()).step_by(37) {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        std::fs::write(&segment, bytes).unwrap();
        assert!(verify(&audit).is_err(), "byte {at}");
    }
    std::fs::write(&segment, &text).unwrap();
    verify(&audit).unwrap();
}

/// Recomputes the hash chain of a log, as somebody without the key could.
fn rehashed(text: &str) -> String {
    use sha2::Digest;
    let mut prev = "0".repeat(64);
    let mut made = String::new();
    for line in text.lines() {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        value["prev"] = prev.into();
        let line = String::from_utf8(serde_json_canonicalizer::to_vec(&value).unwrap()).unwrap();
        prev = sha2::Sha256::digest(&line).iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(made, "{line}").unwrap();
    }
    made
}

/// Threat 25: the next start detects lines that were cut off, deleted or rewritten.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_with_missing_or_rewritten_lines_prevents_the_start() {
    let folder = log(6).await;
    let (data, segment) = (folder.path().join("data"), segment(folder.path()));
    let whole = std::fs::read_to_string(&segment).unwrap();
    let lines: Vec<&str> = whole.lines().collect();
    let cut = lines[..lines.len() - 3].iter().fold(String::new(), |text, line| text + *line + "\n");
    let rewritten = rehashed(&whole.replace("\"decision\":\"allow\"", "\"decision\":\"deny\""));
    for (what, text, words) in [
        ("cut", Some(cut), "has no line"),
        ("gone", None, "has no line"),
        ("emptied", Some(String::new()), "has no line"),
        ("rewritten", Some(rewritten), "was not written with this deployment's key"),
    ] {
        match &text {
            Some(text) => std::fs::write(&segment, text).unwrap(),
            None => std::fs::remove_file(&segment).unwrap(),
        }
        let error = refused(&data).await;
        assert!(error.contains(words), "{what}: {error}");
        if what == "cut" {
            // Each line of the cut log is intact; the noted head and the last checkpoint show the loss.
            let found = verify(&data.join("audit")).unwrap_err().to_string();
            assert!(found.contains("lines were cut off"), "{found}");
            assert!(error.contains("replica.json") && error.contains("accept-loss"), "{error}");
        }
        std::fs::write(&segment, &whole).unwrap();
    }
    // The replica's own note of the head and the checkpoints are lost, too, but the state store has a note.
    std::fs::remove_file(&segment).unwrap();
    let checkpoints = data.join("audit/checkpoints.txt");
    let signed = std::fs::read(&checkpoints).unwrap();
    std::fs::remove_file(&checkpoints).unwrap();
    let note = data.join("state/replica.json");
    let mut noted: serde_json::Value = serde_json::from_slice(&std::fs::read(&note).unwrap()).unwrap();
    noted["head"] = serde_json::Value::Null;
    std::fs::write(&note, noted.to_string()).unwrap();
    assert!(refused(&data).await.contains("noted in the state store"));
    // The note names another replica, or is missing.
    noted["replica"] = "another".into();
    std::fs::write(&note, noted.to_string()).unwrap();
    assert!(refused(&data).await.contains("noted in the state store"));
    std::fs::write(&segment, &whole).unwrap();
    let text = std::fs::read(&note).unwrap();
    std::fs::remove_file(&note).unwrap();
    let error = refused(&data).await;
    assert!(error.contains("replica.json` is missing") && error.contains("Restore the file"), "{error}");
    std::fs::write(&note, text).unwrap();
    std::fs::write(&segment, &whole).unwrap();
    std::fs::write(&checkpoints, signed).unwrap();
    App::start_in(&data, |_, _| {}).await.stop().await;
    verify(&data.join("audit")).unwrap();
}

/// Lines of the first format have no MAC. A key proves nothing about them, so `verify` with a key must fail.
#[tokio::test(flavor = "multi_thread")]
async fn verify_with_a_key_rejects_a_log_without_macs() {
    let folder = log(3).await;
    let (audit, segment) = (folder.path().join("data/audit"), segment(folder.path()));
    let strip = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        value["v"] = 1.into();
        value.as_object_mut().unwrap().remove("mac");
        value.to_string() + "\n"
    };
    let text = std::fs::read_to_string(&segment).unwrap();
    // The first format had no checkpoints.
    std::fs::remove_file(audit.join("checkpoints.txt")).unwrap();
    std::fs::write(&segment, rehashed(&text.lines().map(strip).collect::<String>())).unwrap();
    let error = verify(&audit).unwrap_err().to_string();
    assert!(error.contains("has no `mac`"), "{error}");
    let without_key = countersign::audit::verify::Expected::default();
    assert!(!countersign::audit::verify::verify(&audit, &without_key).unwrap().keyed);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_accepted_loss_is_recorded_and_no_index_is_reused() {
    for all in [false, true] {
        let folder = log(6).await;
        let (data, segment) = (folder.path().join("data"), segment(folder.path()));
        let whole = std::fs::read_to_string(&segment).unwrap();
        let kept = if all { 0 } else { 4 };
        let lost = whole.lines().count();
        std::fs::write(&segment, whole.lines().take(kept).fold(String::new(), |text, line| text + line + "\n"))
            .unwrap();
        let config = crate::harness::config(&data);
        let seams = || countersign::app::Seams::system(Default::default());
        let index =
            countersign::app::log::accept_loss(&config, seams(), "the disk was replaced").await.unwrap().unwrap();
        assert_eq!(index, lost as u64);
        let nothing = countersign::app::log::accept_loss(&config, seams(), "again").await.unwrap_err();
        assert!(nothing.to_string().contains("there is no loss to accept"), "{nothing}");
        let app = App::start_in(&data, |_, _| {}).await;
        let next = app.decisions().await.authorize(order_check()).await.unwrap().into_inner().audit.unwrap().index;
        assert!(next > index, "{next}");
        app.stop().await;
        let report = verify(&data.join("audit")).unwrap();
        assert_eq!((report.losses.len(), report.losses[0].from, report.losses[0].until), (1, kept as u64, index));
        let line = lines(&data).into_iter().find(|line| line["type"] == "log.loss_accepted").unwrap();
        assert_eq!(
            (line["reason"].as_str(), line["noted"][0]["index"].as_u64()),
            (Some("the disk was replaced"), Some(index - 1))
        );
        // The line that records the loss continues the hash chain.
        let newest = data.join(format!("audit/seg-{index:020}.jsonl"));
        let text = std::fs::read_to_string(&newest).unwrap();
        let prev = line["prev"].as_str().unwrap();
        std::fs::write(&newest, text.replacen(prev, &"f".repeat(prev.len()), 1)).unwrap();
        let expected = countersign::audit::verify::Expected::default();
        let error = countersign::audit::verify::verify(&data.join("audit"), &expected).unwrap_err().to_string();
        assert!(error.contains(":1: `prev` is not the hash of the line before"), "{error}");
    }
}

/// INVARIANT 1: a record in a file that can't be found is not a record, so answers must end.
#[tokio::test(flavor = "multi_thread")]
async fn answers_stop_when_the_open_segment_is_removed_or_replaced() {
    for taken in ["deleted", "renamed", "replaced", "cut"] {
        let app = App::start().await;
        let mut client = app.decisions().await;
        client.authorize(order_check()).await.unwrap();
        let open = app.data.join("audit/seg-00000000000000000000.jsonl");
        let text = std::fs::read(&open).unwrap();
        match taken {
            "deleted" => std::fs::remove_file(&open).unwrap(),
            "renamed" => std::fs::rename(&open, open.with_extension("old")).unwrap(),
            "replaced" => {
                std::fs::remove_file(&open).unwrap();
                std::fs::write(&open, &text).unwrap();
            }
            _ => std::fs::OpenOptions::new().write(true).open(&open).unwrap().set_len(10).unwrap(),
        }
        for _ in 0..3 {
            assert_eq!(client.authorize(order_check()).await.unwrap_err().code(), Code::Unavailable, "{taken}");
        }
        assert_eq!(get(app.admin, "/readyz").await, (503, "audit\n".into()), "{taken}");
        app.stop().await;
    }
}

/// A data folder that was restored from an old copy is consistent in itself; only the witness shows the loss.
#[tokio::test(flavor = "multi_thread")]
async fn the_witness_detects_a_data_folder_restored_from_an_old_copy() {
    fn copy_all(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let path = entry.unwrap().path();
            let target = to.join(path.file_name().unwrap());
            if path.is_dir() { copy_all(&path, &target) } else { std::fs::copy(&path, &target).map(|_| ()).unwrap() }
        }
    }
    let folder = temp();
    let (data, snapshot, witness) =
        (folder.path().join("data"), folder.path().join("snapshot"), folder.path().join("heads"));
    let named = witness.to_str().unwrap().to_owned();
    let start = async || App::start_in(&data, |config, _| config.audit.witness = Some(named.clone())).await;
    start().await.stop().await;
    copy_all(&data, &snapshot);
    let app = start().await;
    app.decisions().await.authorize(order_check()).await.unwrap();
    app.stop().await;
    std::fs::remove_dir_all(&data).unwrap();
    copy_all(&snapshot, &data);
    let seams = countersign::app::Seams::system(Default::default());
    let config = countersign::config::Config {
        audit: countersign::config::Audit { witness: Some(named.clone()), ..Default::default() },
        ..crate::harness::config(&data)
    };
    let error = countersign::app::build(&config, seams).await.unwrap_err().to_string();
    assert!(error.contains("noted in the witness"), "{error}");
    // To an auditor the log is intact, but it lacks the head that was witnessed.
    let heads = countersign::audit::witness::read(&witness).unwrap();
    let expected =
        |hash: &str| countersign::audit::verify::Expected { heads: vec![hash.to_owned()], ..Default::default() };
    let verified = |hash: &str| countersign::audit::verify::verify(&data.join("audit"), &expected(hash));
    assert!(verified(&heads.first().unwrap().1.hash).is_ok());
    assert!(matches!(verified(&heads.last().unwrap().1.hash), Err(VerifyError::Broken(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn log_and_state_are_not_accessible_to_other_users() {
    use std::os::unix::fs::PermissionsExt;
    let folder = log(1).await;
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&segment(folder.path())) & 0o037, 0);
    for name in ["audit", "state", "keys"] {
        assert_eq!(mode(&folder.path().join("data").join(name)) & 0o027, 0, "{name}");
    }
}
