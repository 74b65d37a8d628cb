//! The `countersign replay` command.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::audit::{folders, time};
use super::{Environment, Exit, Failure, runtime};
use crate::app::log::evidence_keys;
use crate::audit::decisions::decisions;
use crate::audit::told::plain;
use crate::bundle::{Bundle, LoadError, Reading};
use crate::clock::Stopwatch;
use crate::model::time::Timestamp;
use crate::pdp::kept_bundles;
use crate::workbench::replay::{Bundles, Change, Changed, Keys, Report};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Folders of logs, such as those of several replicas [default: audit/ in the data folder of the settings]
    folders: Vec<PathBuf>,
    /// Folder of a bundle that decides instead of the ones that did
    #[arg(long, value_name = "FOLDER")]
    bundle: Option<PathBuf>,
    /// From this time on (RFC 3339), or from this long ago: `90s`, `15m`, `24h`, `7d`
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<Timestamp>,
    /// Before this time
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<Timestamp>,
}

/// The bundles that are kept beside a log, or one that decides everything.
struct Source {
    log: PathBuf,
    reading: Reading,
    candidate: Option<Arc<Bundle>>,
    kept: HashMap<String, Option<Arc<Bundle>>>,
}

impl Bundles for Source {
    fn bundle(&mut self, digest: &str) -> Option<Arc<Bundle>> {
        if let Some(candidate) = &self.candidate {
            return Some(Arc::clone(candidate));
        }
        let (log, reading) = (&self.log, self.reading);
        let read = || {
            let bundle = Bundle::load(&kept_bundles::place(log, digest), reading).ok()?;
            (bundle.version.digest == digest).then(|| Arc::new(bundle))
        };
        self.kept.entry(digest.to_owned()).or_insert_with(read).clone()
    }
}

pub(super) fn run(environment: &Environment, arguments: &Arguments) -> Result<Exit, Failure> {
    let config = environment.config()?;
    let logs = folders(environment, &arguments.folders)?;
    let reading = config.reading();
    let load = |folder: &PathBuf| Bundle::load(folder, reading).map(Arc::new);
    // A bundle that can't be loaded is no difference.
    let failed = |error: LoadError| Failure { exit: Exit::Failure, ..Failure::from(error) };
    let candidate = arguments.bundle.as_ref().map(load).transpose().map_err(failed)?;
    let (deployment, secrets) =
        runtime()?.block_on(evidence_keys(&config)).map_err(|error| Failure::new(Exit::Failure, error))?;
    let mut keys = Keys::new(deployment, secrets);
    let (mut report, watch) = (Report::default(), Stopwatch::start());
    for log in logs {
        let mut source = Source { log: log.clone(), reading, candidate: candidate.clone(), kept: HashMap::new() };
        let read = decisions(&log, arguments.since, arguments.until, |decided, sealed| {
            report.add(&decided, sealed.as_ref(), &mut keys, &mut source);
        });
        read.map_err(|error| unreadable(&log, &error))?;
    }
    let seconds = watch.elapsed().as_secs_f64();
    environment.print(&json(&report, seconds), &text(&report, seconds));
    Ok(match (report.different, report.replayed) {
        (0, 0) if report.not_replayable.all() > 0 => Exit::Failure,
        (0, _) => Exit::Ok,
        (_, _) => Exit::Invalid,
    })
}

fn unreadable(log: &Path, error: &std::io::Error) -> Failure {
    Failure::new(Exit::Failure, format!("`{}` can't be read: {error}", log.display()))
}

fn json(report: &Report, seconds: f64) -> serde_json::Value {
    let change = |(change, changed): (&Change, &Changed)| {
        serde_json::json!({
            "action": change.action, "was": change.was, "now": change.now, "added": change.added, "removed": change.removed,
            "decisions": changed.decisions, "examples": changed.examples,
        })
    };
    serde_json::json!({
        "replayed": report.replayed, "different": report.different, "before_policies": report.before_policies,
        "not_replayable": report.not_replayable, "seconds": seconds,
        "changes": report.changes.iter().map(change).collect::<Vec<_>>(),
    })
}

fn text(report: &Report, seconds: f64) -> String {
    let Report { replayed, different, before_policies, not_replayable, changes } = report;
    let mut text = format!("{replayed} decisions replayed in {seconds:.1} s: {different} differ");
    if *before_policies > 0 {
        text.push_str(&format!("\n{before_policies} were denied before policies were asked"));
    }
    if not_replayable.all() > 0 {
        let mut causes = vec![];
        for (number, what) in [
            (not_replayable.without_evidence, "without evidence"),
            (not_replayable.without_key, "whose key was erased or has expired"),
            (not_replayable.undecryptable, "encrypted with another keys/values.key"),
            (not_replayable.without_bundle, "by a bundle that is not kept"),
            (not_replayable.unreadable, "with evidence of another form"),
        ] {
            if number > 0 {
                causes.push(format!("{number} {what}"));
            }
        }
        text.push_str(&format!("\n{} can't be replayed: {}", not_replayable.all(), causes.join(", ")));
    }
    for (change, changed) in changes {
        let line = format!("{:>7}  {}: {} -> {}", changed.decisions, change.action, change.was, change.now);
        text.push_str(&format!("\n{}", plain(&line)));
        for (what, policies) in [("now decided by", &change.added), ("no longer decided by", &change.removed)] {
            if !policies.is_empty() {
                text.push_str(&format!("\n         {what} {}", plain(&policies.join(", "))));
            }
        }
        if let Some(example) = changed.examples.first() {
            text.push_str(&format!("\n         such as {example} (see `countersign audit evidence`)"));
        }
    }
    text
}
