//! The tree of the audit log: its proofs are those of the standard, an outsider can check them, and no line changes behind a checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign::audit::checkpoint::{Checkpoint, CheckpointKey, VerifierKey, notes};
use countersign::audit::disk::{Disk, Segment, SystemDisk};
use countersign::audit::key::DigestKey;
use countersign::audit::operations::{LossRecord, ResumedRecord};
use countersign::audit::prove::{ProveError, Wanted, check, prove, prove_consistency};
use countersign::audit::record::Record;
use countersign::audit::tree::{self, Edge, Leaves, is_consistent, root_by_inclusion};
use countersign::audit::verify::{Expected, Verifier, VerifyError, verify};
use countersign::audit::{Audit, Durability, Keys, OpenError, Options};
use countersign::model::time::Timestamp;
use ct_merkle::mem_backed_tree::MemoryBackedTree;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use crate::harness::{App, lines, order_check, temp, within};

const DIGEST_KEY: [u8; 32] = [7; 32];
const CHECKPOINT_KEY: [u8; 32] = [9; 32];
/// Second at which the logs of this file begin.
const START: i64 = 1_772_442_000;

fn checkpoint_key() -> CheckpointKey {
    CheckpointKey::new(CHECKPOINT_KEY).unwrap()
}

fn options(folder: &Path, segment_bytes: u64) -> Options {
    let (folder, log) = (folder.to_owned(), "log".to_owned());
    Options { folder, log, durability: Durability::Strict, segment_bytes, segment_seconds: 86_400 }
}

fn keys() -> Keys {
    Keys { digest: DigestKey::new(DIGEST_KEY), checkpoint: checkpoint_key() }
}

fn open(folder: &Path, segment_bytes: u64, at: i64) -> Result<Audit, OpenError> {
    let now = Timestamp::from_seconds(at);
    Audit::open(options(folder, segment_bytes), keys(), Arc::new(SystemDisk), &[], now).map(|(audit, _)| audit)
}

/// Writes a log of this many lines, one a second, and closes it.
async fn write(folder: &Path, count: i64, segment_bytes: u64, from: i64) {
    let audit = open(folder, segment_bytes, START + from).unwrap();
    for index in 0..count {
        let at = Timestamp::from_seconds(START + from + index);
        audit.append(at, Record::Resumed(ResumedRecord { failures: index.unsigned_abs() })).await.unwrap();
    }
    tokio::task::block_in_place(|| audit.close());
}

fn expected() -> Expected {
    let verifier = Verifier::parse(&checkpoint_key().verifier().unwrap().to_string());
    Expected { keys: vec![DIGEST_KEY], verifier: Some(verifier.unwrap()), ..Expected::default() }
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<PathBuf> = names.filter(|path| path.extension().is_some_and(|end| end == "jsonl")).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn every_line_is_proven_by_the_newest_checkpoint_whatever_its_segment() {
    let folder = temp();
    let log = folder.path().join("audit");
    // Small segments, and a second start in the middle.
    write(&log, 25, 2000, 0).await;
    write(&log, 20, 2000, 100).await;
    assert!(segments(&log).len() > 4, "{:?}", segments(&log));
    let report = verify(&log, &expected()).unwrap();
    assert!(report.signed && report.checkpoints >= 6, "{report:?}");
    let key = checkpoint_key().verifier().unwrap();
    for index in 0..report.lines {
        let proof = prove(&log, &Wanted::Index(index)).unwrap();
        let checkpoint = check(&proof.line, &proof.text, &key).expect("a proof that holds");
        assert_eq!(checkpoint.size, report.lines, "the last checkpoint is signed when the log is closed");
        let other = prove(&log, &Wanted::Index((index + 1) % report.lines)).unwrap();
        assert_eq!(check(&other.line, &proof.text, &key), None, "{index}: of another line");
    }
    assert!(matches!(prove(&log, &Wanted::Index(report.lines)), Err(ProveError::Missing(_))));
    // Each checkpoint is the beginning of the last one.
    let file = std::fs::read_to_string(log.join("checkpoints.txt")).unwrap();
    let all = notes(&file);
    let last = Checkpoint::open(all.last().unwrap(), &key).unwrap();
    for note in &all {
        let older = Checkpoint::open(note, &key).unwrap();
        let text = prove_consistency(&log, note).unwrap();
        let (head, newest) = text.split_once("\n\n").unwrap();
        assert_eq!(Checkpoint::open(newest, &key), Some(last.clone()));
        let mut written = head.lines();
        assert_eq!(written.next(), Some(format!("old {}", older.size).as_str()));
        use base64::Engine as _;
        let decode = |line: &str| base64::engine::general_purpose::STANDARD.decode(line).unwrap().try_into().unwrap();
        let proof: Vec<tree::Hash> = written.map(decode).collect();
        assert!(is_consistent((older.size, older.root), (last.size, last.root), &proof), "{}", older.size);
    }
}

/// What an attacker does to the files of a log.
type Change = fn(&Path);

/// An attacker who has the digest key can compute every hash and MAC anew, but no signature.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_was_rewritten_with_its_own_key_differs_from_its_checkpoints() {
    let cases: [(&str, Change); 7] = [
        ("a changed line", |log| rewrite(log, |lines| lines[3] = lines[3].replace("\"failures\":3", "\"failures\":4"))),
        ("a deleted line", |log| rewrite(log, |lines| drop(lines.remove(3)))),
        ("an inserted line", |log| rewrite(log, |lines| lines.insert(3, lines[3].clone()))),
        ("swapped lines", |log| rewrite(log, |lines| lines.swap(3, 4))),
        ("a log without its end", |log| rewrite(log, |lines| lines.truncate(9))),
        ("a forged checkpoint", |log| {
            let key = CheckpointKey::new([1; 32]).unwrap();
            append(log, &key.sign(key.name(), 5, [0; 32]));
        }),
        ("a checkpoint of another root", |log| {
            let key = checkpoint_key();
            append(log, &key.sign(key.name(), 5, [0; 32]));
        }),
    ];
    for (what, change) in cases {
        let folder = temp();
        let log = folder.path().join("audit");
        write(&log, 10, 1 << 20, 0).await;
        verify(&log, &expected()).unwrap();
        change(&log);
        let found = verify(&log, &expected());
        assert!(matches!(found, Err(VerifyError::Broken(_))), "{what}: {found:?}");
        // A start refuses what contradicts the last checkpoint.
        let opened = open(&log, 1 << 20, START + 60);
        assert!(opened.is_err(), "{what}: {opened:?}");
    }
}

/// Segments older than the log is kept are deleted, and the rest is as provable as before.
#[tokio::test(flavor = "multi_thread")]
async fn old_segments_are_deleted_by_a_line_that_says_so_and_the_rest_stays_provable() {
    let folder = temp();
    let log = folder.path().join("audit");
    write(&log, 60, 2000, 0).await;
    let (all, text) = (segments(&log), std::fs::read_to_string(log.join("checkpoints.txt")).unwrap());
    assert!(all.len() > 5);
    let key = checkpoint_key().verifier().unwrap();
    let at = |second: i64| Timestamp::from_seconds(START + second);
    let first = |path: &Path| path.file_stem().unwrap().to_str().unwrap()[4..].parse::<u64>().unwrap();
    let trim = |before: i64| {
        let audit = open(&log, 2000, START + 100).unwrap();
        audit.trim(at(before), at(100));
        tokio::task::block_in_place(|| audit.close());
    };
    // Nothing is as old as that.
    trim(-1);
    assert_eq!(segments(&log), all);
    trim(30);
    let left = segments(&log);
    let from = first(&left[0]);
    assert!(from > 0 && from <= 30 && first(&left[1]) > 30, "{left:?}");
    let report = verify(&log, &expected()).unwrap();
    assert_eq!((report.from, report.signed), (from, true), "{report:?}");
    assert!(report.checkpoints > 0);
    let last = from + report.lines - 1;
    for index in [from, from + 1, last - 1] {
        let proof = prove(&log, &Wanted::Index(index)).unwrap();
        assert!(check(&proof.line, &proof.text, &key).is_some(), "{index}");
    }
    assert!(matches!(prove(&log, &Wanted::Index(from - 1)), Err(ProveError::Missing(_))));
    // A checkpoint of before can still be compared, if it covers what is left.
    let notes_before = notes(&text);
    let older = notes_before.last().unwrap();
    assert!(Checkpoint::open(older, &key).unwrap().size > from);
    let proof = prove_consistency(&log, older).unwrap();
    let (head, newest) = proof.split_once("\n\n").unwrap();
    let (old, new) = (Checkpoint::open(older, &key).unwrap(), Checkpoint::open(newest, &key).unwrap());
    use base64::Engine as _;
    let decode = |line: &str| base64::engine::general_purpose::STANDARD.decode(line).unwrap().try_into().unwrap();
    let hashes: Vec<tree::Hash> = head.lines().skip(1).map(decode).collect();
    assert!(is_consistent((old.size, old.root), (new.size, new.root), &hashes));
    // The last two segments stay, whatever their age; the server goes on.
    trim(1000);
    assert_eq!(segments(&log).len(), 2);
    write(&log, 3, 2000, 2000).await;
    verify(&log, &expected()).unwrap();

    // Somebody else deletes one more segment, or changes what is known of the deleted lines.
    write(&log, 30, 2000, 3000).await;
    verify(&log, &expected()).unwrap();
    let whole: Vec<(PathBuf, Vec<u8>)> =
        segments(&log).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
    let (oldest, bytes) = &whole[0];
    std::fs::remove_file(oldest).unwrap();
    let cut = verify(&log, &expected()).unwrap_err().to_string();
    assert!(cut.contains("lines were cut off"), "{cut}");
    std::fs::write(oldest, bytes).unwrap();
    verify(&log, &expected()).unwrap();
    let tree = oldest.with_extension("tree");
    let noted = std::fs::read_to_string(&tree).unwrap();
    let lines: Vec<&str> = noted.lines().collect();
    let other = noted.replace(lines[3], &base64::engine::general_purpose::STANDARD.encode([3; 32]));
    std::fs::write(&tree, other).unwrap();
    let changed = verify(&log, &expected()).unwrap_err().to_string();
    assert!(changed.contains("is not that of the deleted lines"), "{changed}");
    // Another first line of the tree would leave every checkpoint out, and so hide that the end was cut off, too.
    let last = segments(&log).pop().unwrap();
    let end = std::fs::read(&last).unwrap();
    for (base, size) in [(first(oldest), 0), (u64::MAX, 0), (0, u64::MAX), (first(oldest) - 1, 1)] {
        let forged = format!("countersign audit tree 1\n{base}\n{size}\n");
        std::fs::write(&tree, if size == 1 { format!("{forged}{}\n", lines[3]) } else { forged }).unwrap();
        std::fs::remove_file(&last).unwrap();
        let found = verify(&log, &expected());
        assert!(matches!(found, Err(VerifyError::Broken(_))), "{base} {size}: {found:?}");
        std::fs::write(&last, &end).unwrap();
        assert!(verify(&log, &expected()).is_err(), "{base} {size}");
    }
    std::fs::write(&tree, &noted).unwrap();
    verify(&log, &expected()).unwrap();
    // A kept checkpoint that covers only deleted lines shows nothing.
    let kept = Expected { checkpoints: vec![notes_before[0].to_owned()], ..expected() };
    let found = verify(&log, &kept).unwrap_err().to_string();
    assert!(found.contains("covers only deleted lines"), "{found}");
    std::fs::remove_file(&tree).unwrap();
    let gone = verify(&log, &expected()).unwrap_err().to_string();
    assert!(gone.contains("lines were cut off"), "{gone}");
}

/// A witness also has heads of lines that were deleted since; they can't be compared, and the others must be there.
#[tokio::test(flavor = "multi_thread")]
async fn a_witness_is_compared_with_the_lines_that_are_left() {
    let folder = temp();
    let log = folder.path().join("audit");
    write(&log, 60, 2000, 0).await;
    let all = segments(&log).into_iter().map(|path| std::fs::read_to_string(path).unwrap()).collect::<String>();
    let note = |(index, line): (usize, &str)| {
        let hash = data_encoding::HEXLOWER.encode(&Sha256::digest(line));
        serde_json::json!({"replica": "r-1", "log": "log", "index": index, "hash": hash, "at": "2026-03-02T09:00:00Z"})
            .to_string()
            + "\n"
    };
    let witness = folder.path().join("witness.jsonl");
    std::fs::write(&witness, all.lines().enumerate().map(note).collect::<String>()).unwrap();
    let audit = open(&log, 2000, START + 100).unwrap();
    audit.trim(Timestamp::from_seconds(START + 30), Timestamp::from_seconds(START + 100));
    tokio::task::block_in_place(|| audit.close());
    // The command may run as another user than the test.
    let opened = std::process::Command::new("chmod").args(["-R", "a+rX"]).arg(folder.path()).status().unwrap();
    assert!(opened.success());
    let verified = || {
        let mut verify = crate::harness::command(&["audit", "verify", "--replica", "r-1", "--witness"]);
        let output = verify.args([&witness, &log]).output().unwrap();
        (output.status.code(), [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).concat())
    };
    let (code, text) = verified();
    assert!(code == Some(0) && text.contains("were deleted, as a later line says"), "{text}");
    // Somebody else's copy of the log, or one that lost its end, is not the one that was noted.
    std::fs::write(&witness, note((60, "another line"))).unwrap();
    let (code, text) = verified();
    assert!(code == Some(3) && text.contains("no line has the noted hash"), "{code:?} {text}");
}

/// Who can write the files, but has no key, can't make the server delete lines that are not old.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_time_does_not_make_lines_old() {
    let folder = temp();
    let log = folder.path().join("audit");
    write(&log, 60, 2000, 0).await;
    let before = segments(&log);
    // A start would refuse the changed lines.
    let audit = open(&log, 2000, START + 100).unwrap();
    for path in &before[1..4] {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, text.replacen("\"ts\":\"2026", "\"ts\":\"2016", 1)).unwrap();
    }
    audit.trim(Timestamp::from_seconds(START - 3600), Timestamp::from_seconds(START + 100));
    tokio::task::block_in_place(|| audit.close());
    assert_eq!(segments(&log), before);
    assert!(matches!(open(&log, 2000, START + 200), Err(OpenError::Foreign { .. })));
}

/// Every way to tamper with a closed log, with what `verify` says and what a start says. Those of an attacker without the digest key
/// leave hashes and MACs as they are.
#[tokio::test(flavor = "multi_thread")]
async fn each_way_to_tamper_is_detected_and_named() {
    let cases: [(&str, Change); 11] = [
        ("flipped_byte", |log| edit(log, 1, |text| text.replacen("\"failures\":1", "\"failures\":9", 1))),
        ("deleted_line", |log| edit(log, 1, |text| without(text, 1))),
        ("inserted_line", |log| edit(log, 1, |text| format!("{}{text}", text.split_inclusive('\n').next().unwrap()))),
        ("reordered_lines", |log| edit(log, 1, |text| text.split_inclusive('\n').rev().collect())),
        ("truncated_log", |log| edit(log, segments(log).len() - 1, |text| without(text, text.lines().count() - 1))),
        ("removed_segment", |log| std::fs::remove_file(&segments(log)[1]).unwrap()),
        ("removed_last_segment", |log| std::fs::remove_file(segments(log).last().unwrap()).unwrap()),
        ("swapped_segments", |log| {
            let all = segments(log);
            let (one, two) = (std::fs::read(&all[1]).unwrap(), std::fs::read(&all[2]).unwrap());
            std::fs::write(&all[1], two).unwrap();
            std::fs::write(&all[2], one).unwrap();
        }),
        ("forged_checkpoint", |log| {
            let key = CheckpointKey::new([1; 32]).unwrap();
            append(log, &key.sign(key.name(), 5, [0; 32]));
        }),
        ("replayed_old_segment", |log| {
            let all = segments(log);
            let first = std::fs::read(&all[0]).unwrap();
            std::fs::write(all.last().unwrap(), first).unwrap();
        }),
        ("cut_in_a_durable_line", |log| edit(log, segments(log).len() - 1, |text| text[..text.len() / 2].to_owned())),
    ];
    for (fault, tamper) in cases {
        let folder = temp();
        let log = folder.path().join("audit");
        write(&log, 40, 2000, 0).await;
        assert!(segments(&log).len() >= 4);
        for path in segments(&log) {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o640)).unwrap();
        }
        tamper(&log);
        let found = verify(&log, &expected()).expect_err(fault).to_string();
        let opened = match open(&log, 2000, START + 60) {
            Ok(_) => "the server starts: of older segments it reads the ends alone".to_owned(),
            Err(error) => error.to_string().replace(&log.display().to_string(), "<log>"),
        };
        insta::assert_snapshot!(format!("tamper_{fault}"), format!("verify: {found}\nstart: {opened}"));
    }
}

fn edit(log: &Path, segment: usize, change: impl FnOnce(&str) -> String) {
    let path = segments(log).remove(segment);
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, change(&text)).unwrap();
}

fn without(text: &str, line: usize) -> String {
    text.split_inclusive('\n').enumerate().filter(|(at, _)| *at != line).map(|(_, line)| line).collect()
}

/// A disk on which checkpoints fail: at the write, or at the sync.
#[derive(Debug)]
struct NoCheckpoints {
    fails: Arc<std::sync::atomic::AtomicU8>,
}

const AT_WRITE: u8 = 1;
const AT_SYNC: u8 = 2;

#[derive(Debug)]
struct NoCheckpoint {
    below: Box<dyn Segment>,
    is_checkpoint: bool,
    fails: Arc<std::sync::atomic::AtomicU8>,
}

impl Disk for NoCheckpoints {
    fn open(&self, path: &Path) -> std::io::Result<Box<dyn Segment>> {
        let is_checkpoint = path.ends_with("checkpoints.txt");
        Ok(Box::new(NoCheckpoint { below: SystemDisk.open(path)?, is_checkpoint, fails: Arc::clone(&self.fails) }))
    }

    fn sync_folder(&self, path: &Path) -> std::io::Result<()> {
        SystemDisk.sync_folder(path)
    }

    fn free(&self, path: &Path) -> Option<(u64, u64)> {
        SystemDisk.free(path)
    }
}

impl NoCheckpoint {
    fn fails(&self, at: u8) -> std::io::Result<()> {
        let fails = self.is_checkpoint && self.fails.load(std::sync::atomic::Ordering::SeqCst) == at;
        let code = if at == AT_WRITE { 28 } else { 5 };
        if fails { Err(std::io::Error::from_raw_os_error(code)) } else { Ok(()) }
    }
}

impl Segment for NoCheckpoint {
    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if let Err(error) = self.fails(AT_WRITE) {
            // A full disk may take a part.
            self.below.write_all(&bytes[..bytes.len() / 2])?;
            return Err(error);
        }
        self.below.write_all(bytes)
    }

    fn sync(&mut self) -> std::io::Result<()> {
        self.fails(AT_SYNC)?;
        self.below.sync()
    }

    fn set_len(&mut self, length: u64) -> std::io::Result<()> {
        self.below.set_len(length)
    }

    fn is_at(&self, path: &Path, length: u64) -> std::io::Result<bool> {
        self.below.is_at(path, length)
    }
}

/// ENOSPC and EIO at a checkpoint: lines are still written and answered, and a later checkpoint covers them.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_can_not_be_written_stops_no_line_and_is_made_up_for() {
    for fails in [AT_WRITE, AT_SYNC] {
        let folder = temp();
        let log = folder.path().join("audit");
        let switch = Arc::new(std::sync::atomic::AtomicU8::new(0));
        let disk = Arc::new(NoCheckpoints { fails: Arc::clone(&switch) });
        let now = |second: i64| Timestamp::from_seconds(START + second);
        let (audit, _) = Audit::open(options(&log, 1 << 20), keys(), disk, &[], now(0)).unwrap();
        let line = |index: u64| Record::Resumed(ResumedRecord { failures: index });
        audit.append(now(0), line(0)).await.unwrap();
        switch.store(fails, std::sync::atomic::Ordering::SeqCst);
        for second in [20, 40] {
            audit.append(now(second), line(1)).await.unwrap();
        }
        within("failed checkpoint", async {
            while audit.failures() < 2 {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
        assert!(audit.healthy());
        switch.store(0, std::sync::atomic::Ordering::SeqCst);
        audit.append(now(60), line(2)).await.unwrap();
        tokio::task::block_in_place(|| audit.close());
        let report = verify(&log, &expected()).unwrap();
        assert_eq!((report.lines, report.signed), (4, true), "{report:?}");
        let proof = prove(&log, &Wanted::Index(3)).unwrap();
        assert!(check(&proof.line, &proof.text, &checkpoint_key().verifier().unwrap()).is_some());
    }
}

/// Changes the lines of a log, and computes numbers, hashes and MACs anew.
fn rewrite(log: &Path, change: fn(&mut Vec<String>)) {
    let path = segments(log).remove(0);
    let mut lines: Vec<String> = std::fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
    change(&mut lines);
    let (mut prev, mut text) = ("0".repeat(64), String::new());
    for (seq, line) in lines.iter().enumerate() {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        value["seq"] = seq.into();
        value["prev"] = prev.into();
        value["durable"] = seq.checked_sub(1).map_or(serde_json::Value::Null, serde_json::Value::from);
        value["mac"] = "0".repeat(64).into();
        let blank = serde_json_canonicalizer::to_string(&value).unwrap();
        value["mac"] = mac(blank.as_bytes()).into();
        let line = serde_json_canonicalizer::to_string(&value).unwrap();
        prev = Sha256::digest(line.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        text.push_str(&line);
        text.push('\n');
    }
    std::fs::write(&path, text).unwrap();
}

fn mac(line: &[u8]) -> String {
    use hmac::{KeyInit as _, Mac as _};
    let mut mac = hmac::Hmac::<Sha256>::new_from_slice(&DIGEST_KEY).unwrap();
    mac.update(b"countersign audit line\0");
    mac.update(line);
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn append(log: &Path, note: &str) {
    let file = log.join("checkpoints.txt");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, format!("{text}{note}\n")).unwrap();
}

/// A crash may cut off a checkpoint or leave lines behind the last one; neither is a fault.
#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_a_crash_cut_off_is_signed_again() {
    let folder = temp();
    let log = folder.path().join("audit");
    write(&log, 5, 1 << 20, 0).await;
    let file = log.join("checkpoints.txt");
    let text = std::fs::read_to_string(&file).unwrap();
    for left in [text.len() - 1, text.len() - 40, 10, 0] {
        std::fs::write(&file, &text[..left]).unwrap();
        verify(&log, &expected()).unwrap();
        write(&log, 1, 1 << 20, 50).await;
        let report = verify(&log, &expected()).unwrap();
        assert!(report.checkpoints > 0, "{left}");
        let proof = prove(&log, &Wanted::Index(report.lines - 1)).unwrap();
        assert!(check(&proof.line, &proof.text, &checkpoint_key().verifier().unwrap()).is_some());
    }
}

/// If checkpoints could not be written for a while, the last one is older than the last segment.
#[tokio::test(flavor = "multi_thread")]
async fn an_old_checkpoint_is_compared_with_the_segment_that_it_is_of() {
    let folder = temp();
    let log = folder.path().join("audit");
    write(&log, 25, 2000, 0).await;
    let file = log.join("checkpoints.txt");
    let text = std::fs::read_to_string(&file).unwrap();
    let oldest = notes(&text)[0].to_owned();
    std::fs::write(&file, format!("{oldest}\n")).unwrap();
    write(&log, 1, 2000, 50).await;
    assert_eq!(verify(&log, &expected()).unwrap().checkpoints, 2);
    // It still shows that its own lines changed, even without the note of the tree.
    for file in std::fs::read_dir(&log).unwrap().map(|file| file.unwrap().path()) {
        if file.extension().is_some_and(|end| end == "tree") {
            std::fs::remove_file(file).unwrap();
        }
    }
    write(&log, 1, 2000, 60).await;
    std::fs::write(&file, format!("{oldest}\n")).unwrap();
    rewrite(&log, |lines| lines[0] = lines[0].replace("\"failures\":0", "\"failures\":7"));
    assert!(open(&log, 2000, START + 70).is_err());
}

/// Lines that nobody noted but a checkpoint can be given up, too; their numbers are not used again.
#[tokio::test(flavor = "multi_thread")]
async fn a_loss_that_only_a_checkpoint_shows_can_be_accepted() {
    let folder = temp();
    let log = folder.path().join("audit");
    write(&log, 10, 1 << 20, 0).await;
    let segment = segments(&log).remove(0);
    let text = std::fs::read_to_string(&segment).unwrap();
    std::fs::write(&segment, text.lines().take(6).fold(String::new(), |kept, line| kept + line + "\n")).unwrap();
    assert!(matches!(open(&log, 1 << 20, START + 20), Err(OpenError::Checkpoint(_))));
    let now = Timestamp::from_seconds(START + 20);
    let disk = Arc::new(SystemDisk);
    let (audit, _) = Audit::open_after_loss(options(&log, 1 << 20), keys(), disk, &[], now).unwrap();
    let loss = LossRecord { reason: "a test".into(), found: audit.head(), noted: vec![] };
    let index = audit.append(now, Record::LossAccepted(loss)).await.unwrap().index();
    assert_eq!(index, Some(10), "no number of a lost line");
    tokio::task::block_in_place(|| audit.close());
    write(&log, 3, 1 << 20, 30).await;
    let report = verify(&log, &expected()).unwrap();
    assert_eq!((report.losses[0].from, report.losses[0].until, report.signed), (6, 10, true));
    let proof = prove(&log, &Wanted::Index(12)).unwrap();
    let checkpoint = check(&proof.line, &proof.text, &checkpoint_key().verifier().unwrap()).unwrap();
    assert!(checkpoint.origin.ends_with("/10") && checkpoint.size == 4, "{checkpoint:?}");
    let again = Audit::open_after_loss(options(&log, 1 << 20), keys(), Arc::new(SystemDisk), &[], now);
    assert!(matches!(again, Err(OpenError::Complete(_))));
}

/// A segment whose lines were all lost stays, empty, before the line that accepts the loss.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_with_an_emptied_segment_before_an_accepted_loss_starts_again_and_a_forged_loss_does_not() {
    let folder = temp();
    let log = folder.path().join("audit");
    write(&log, 40, 2000, 0).await;
    let last = segments(&log).pop().unwrap();
    std::fs::File::options().write(true).open(last).unwrap().set_len(0).unwrap();
    assert!(matches!(open(&log, 2000, START + 50), Err(OpenError::Checkpoint(_))));
    let now = Timestamp::from_seconds(START + 50);
    let (audit, _) = Audit::open_after_loss(options(&log, 2000), keys(), Arc::new(SystemDisk), &[], now).unwrap();
    let loss = LossRecord { reason: "a test".into(), found: audit.head(), noted: vec![] };
    audit.append(now, Record::LossAccepted(loss)).await.unwrap();
    tokio::task::block_in_place(|| audit.close());
    // It starts while the segment of the loss is the last one, and when others follow.
    write(&log, 1, 2000, 60).await;
    write(&log, 20, 2000, 70).await;
    tokio::task::block_in_place(|| open(&log, 2000, START + 100).unwrap().close());
    assert_eq!(verify(&log, &expected()).unwrap().losses.len(), 1);

    // An attacker without the key can't hide a gap with such a line.
    let all = segments(&log);
    let emptied = all.iter().position(|path| std::fs::metadata(path).unwrap().len() == 0).unwrap();
    let kept = std::fs::read(&all[emptied - 1]).unwrap();
    std::fs::remove_file(&all[emptied - 1]).unwrap();
    assert!(matches!(open(&log, 2000, START + 110), Err(OpenError::Damaged { .. })));
    std::fs::write(&all[emptied - 1], kept).unwrap();
    let (gone, next) = (&all[1], &all[2]);
    let whole = std::fs::read_to_string(next).unwrap();
    std::fs::remove_file(gone).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(next, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::fs::write(next, whole.replacen("\"type\":\"log.resumed\"", "\"type\":\"log.loss_accepted\"", 1)).unwrap();
    let found = open(&log, 2000, START + 110).map(drop);
    assert!(matches!(found, Err(OpenError::Foreign { .. })), "{found:?}");
}

/// The last lines of a best-effort log become durable, and get a checkpoint, although no line follows them.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_lines_of_an_idle_best_effort_log_are_synced_and_signed() {
    let folder = temp();
    let log = folder.path().join("audit");
    let options = Options { durability: Durability::BestEffort, ..options(&log, 1 << 20) };
    let now = Timestamp::from_seconds(START);
    let (audit, _) = Audit::open(options, keys(), Arc::new(SystemDisk), &[], now).unwrap();
    audit.append(now, Record::Resumed(ResumedRecord { failures: 0 })).await.unwrap();
    audit.checkpoint(Timestamp::from_seconds(START + 11));
    within("checkpoint", async {
        while std::fs::read_to_string(log.join("checkpoints.txt")).is_ok_and(|text| notes(&text).is_empty()) {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(audit.head().map(|head| head.index), Some(0));
    tokio::task::block_in_place(|| audit.close());
    verify(&log, &expected()).unwrap();
}

/// A script that follows the page on audit proves a decision, and refuses every change of the proof.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_checks_a_proof_by_the_documentation_alone() {
    let app = App::start().await;
    let mut client = app.decisions().await;
    let mut ids = vec![];
    for _ in 0..6 {
        ids.push(client.authorize(order_check()).await.unwrap().into_inner().evaluation_id);
    }
    let data = app.data.clone();
    let _kept = app.stop().await;
    let (log, out) = (data.join("audit"), data.join("evidence"));
    std::fs::create_dir(&out).unwrap();
    let made = prove(&log, &Wanted::Evaluation(ids[2].clone())).unwrap();
    let index = lines(&data).iter().find(|line| line["evaluation_id"] == ids[2].as_str()).unwrap()["seq"].clone();
    let (line, proof) = (out.join("line.json"), out.join("line.tlog-proof"));
    std::fs::write(&line, &made.line).unwrap();
    std::fs::write(&proof, &made.text).unwrap();
    let key = out.join("audit-checkpoint.vkey");
    std::fs::copy(data.join("keys/audit-checkpoint.vkey"), &key).unwrap();
    let verifier = VerifierKey::parse(&std::fs::read_to_string(&key).unwrap()).unwrap();
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-venv/bin/python");
    assert!(python.exists(), "the test environment is missing: run `scripts/setup-tests`, or `make test`");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/check_proof.py");
    let checked = || {
        let mut run = std::process::Command::new(&python);
        run.args([&script, &line, &proof, &key]);
        let output = run.output().unwrap();
        let (line, proof) = (std::fs::read(&line).unwrap(), std::fs::read_to_string(&proof).unwrap());
        assert_eq!(output.status.success(), check(&line, &proof, &verifier).is_some(), "{output:?}");
        output
    };
    let good = checked();
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    assert_eq!(String::from_utf8_lossy(&good.stdout).split(' ').nth(1), Some(index.to_string().as_str()));
    let (own_line, own_proof) = (std::fs::read(&line).unwrap(), std::fs::read_to_string(&proof).unwrap());
    for (what, changed_line, changed_proof) in [
        ("the line", [own_line.as_slice(), b" "].concat(), own_proof.clone()),
        ("the index", own_line.clone(), own_proof.replace(&format!("index {index}"), "index 0")),
        (
            "a hash less",
            own_line.clone(),
            own_proof.lines().enumerate().filter(|(at, _)| *at != 2).map(|(_, line)| format!("{line}\n")).collect(),
        ),
        ("the size", own_line.clone(), own_proof.replace("\n\ncountersign", "\n\ncountersign/x")),
    ] {
        std::fs::write(&line, changed_line).unwrap();
        std::fs::write(&proof, changed_proof).unwrap();
        assert!(!checked().status.success(), "{what}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(crate::harness::cases(32)))]

    /// Roots and proofs are those of two other implementations.
    #[test]
    fn the_tree_is_that_of_other_implementations(leaves in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..70), at in any::<prop::sample::Index>(), old in any::<prop::sample::Index>()) {
        let mut other = MemoryBackedTree::<Sha256, Vec<u8>>::new();
        leaves.iter().for_each(|leaf| other.push(leaf.clone()));
        let own = Leaves { before: Edge::default(), hashes: leaves.iter().map(|leaf| tree::leaf(leaf)).collect() };
        let size = own.size();
        let root = own.root(0, size).unwrap();
        prop_assert_eq!(other.root().as_bytes().to_vec(), root.to_vec());
        let index = at.index(leaves.len());
        let proof = own.inclusion(index as u64, size).unwrap();
        prop_assert_eq!(other.prove_inclusion(index).as_bytes().to_vec(), proof.concat());
        let theirs = proof.iter().map(|hash| tlog_tiles::Hash(*hash)).collect::<Vec<_>>();
        let leaf = tlog_tiles::record_hash(&leaves[index]);
        prop_assert_eq!(leaf.0, tree::leaf(&leaves[index]));
        prop_assert!(tlog_tiles::check_record(&theirs, size, tlog_tiles::Hash(root), index as u64, leaf).is_ok());
        prop_assert_eq!(root_by_inclusion(leaf.0, index as u64, size, &proof), Some(root));
        let old = old.index(leaves.len()) as u64 + 1;
        let old_root = own.root(0, old).unwrap();
        let proof = own.consistency(old, size).unwrap();
        let theirs = proof.iter().map(|hash| tlog_tiles::Hash(*hash)).collect::<Vec<_>>();
        prop_assert!(tlog_tiles::check_tree(&theirs, size, tlog_tiles::Hash(root), old, tlog_tiles::Hash(old_root)).is_ok());
        prop_assert!(is_consistent((old, old_root), (size, root), &proof));
    }

    /// Checkpoints and keys are read by another implementation of signed notes.
    #[test]
    fn a_checkpoint_is_a_signed_note_of_other_implementations(size in any::<u64>(), root in any::<[u8; 32]>(), seed in any::<[u8; 32]>()) {
        let key = CheckpointKey::new(seed).unwrap();
        let note = key.sign(key.name(), size, root);
        let verifier = signed_note::StandardVerifier::new(&key.verifier().unwrap().to_string()).unwrap();
        let known = signed_note::VerifierList::new(vec![Box::new(verifier)]);
        let read = signed_note::Note::from_bytes(note.as_bytes()).unwrap();
        let (verified, rest) = read.verify(&known).unwrap();
        prop_assert_eq!((verified.len(), rest.len()), (1, 0));
        let checkpoint = tlog_tiles::Checkpoint::from_bytes(read.text()).unwrap();
        prop_assert_eq!((checkpoint.origin(), checkpoint.size(), checkpoint.hash().0), (key.name(), size, root));
        prop_assert!(VerifierKey::parse(&key.verifier().unwrap().to_string()).is_some());
    }
}
