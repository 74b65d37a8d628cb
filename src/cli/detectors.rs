//! The `countersign detectors` command.

use std::path::PathBuf;

use super::{Environment, Exit, Failure, print};
use crate::bundle::Bundle;
use crate::bundle::folder::Folder;
use crate::content::drafts::Draft;
use crate::content::linear::Linear;
use crate::content::linear::features::Features;
use crate::content::normalise::Views;
use crate::content::values::{ValueKey, Values};
use crate::content::{Detectors, INJECTION};
use crate::model::part::Part as _;
use crate::workbench::detectors::corpus::{Part, Row, read};
use crate::workbench::detectors::evaluate::{Measure, evaluate, texts};
use crate::workbench::detectors::train::train;
use crate::workbench::tables::explain::{Explained, Explanation, explain as explain_for, readings};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Measure what a bundle's detectors find in folders of JSON Lines (docs/detectors.md says which)
    Evaluate(Evaluate),
    /// Show the findings in a text, and the n-grams that decide each model's score; of a draft, its claims
    Explain(Explain),
    /// Train a model on folders of JSON Lines
    Train(Train),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Half {
    /// Lines whose hash is even
    First,
    /// Lines whose hash is odd
    Second,
}

impl From<Half> for Part {
    fn from(half: Half) -> Self {
        match half {
            Half::First => Self::First,
            Half::Second => Self::Second,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Corpora {
    /// Folders with *.jsonl files
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    /// Only half of the lines, by their hash: train on one, evaluate on the other
    #[arg(long)]
    half: Option<Half>,
}

impl Corpora {
    fn read(&self) -> Result<Vec<Row>, Failure> {
        let part = self.half.map_or(Part::All, Part::from);
        let rows: Result<Vec<Vec<Row>>, _> = self.folders.iter().map(|folder| read(folder, part)).collect();
        Ok(rows.map_err(|error| Failure::new(Exit::Failure, error))?.concat())
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Evaluate {
    #[command(flatten)]
    corpora: Corpora,
    /// Folder of the policy bundle [default: policies, or that of the settings]
    #[arg(long)]
    bundle: Option<PathBuf>,
    /// Print the texts of this measure, with `+` before those that are found, instead of all measures
    #[arg(long, value_name = "MEASURE")]
    texts: Option<String>,
    /// A model instead of the bundle's own, of the kind that its file is named after
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Explain {
    /// The text
    text: String,
    /// Read the text as a draft to a customer, and show each finding with the words that make it
    #[arg(long)]
    draft: bool,
    /// Fixture of a case in the bundle's tables: show what the policies make of the draft for this case
    #[arg(long, requires = "draft")]
    case: Option<String>,
    /// Attributes of the case that differ from the fixture's, as a JSON object
    #[arg(long, requires = "case", value_name = "JSON")]
    attributes: Option<String>,
    /// Fixture of a context in the bundle's tables, such as `screened`; may be repeated
    #[arg(long, requires = "case", value_name = "NAME")]
    context: Vec<String>,
    /// Time of the decision, to which the fixtures' times refer
    #[arg(long, requires = "case", default_value = "2026-03-02T09:00:00Z")]
    now: String,
    /// Source of the text, which selects the threshold
    #[arg(long, default_value = "chat")]
    source: String,
    /// Folder of the policy bundle [default: policies, or that of the settings]
    #[arg(long)]
    bundle: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Train {
    #[command(flatten)]
    corpora: Corpora,
    /// Kind of findings that the model is for
    #[arg(long, default_value = INJECTION)]
    kind: String,
    /// Output file of the model; in a bundle it is detectors/<KIND>.model
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(super) fn run(environment: &Environment, command: &Command) -> Result<Exit, Failure> {
    match command {
        Command::Evaluate(arguments) => {
            let mut detectors = detectors(environment, arguments.bundle.as_ref())?;
            if let Some(path) = &arguments.model {
                let failed = |problem: String| Failure::new(Exit::Failure, format!("`{}`: {problem}", path.display()));
                let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
                let model = Linear::read(&text).map_err(failed)?;
                let kind = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                match detectors.models.get_mut(&kind) {
                    Some(own) => *own = model,
                    None if kind == INJECTION => detectors.injection = Some(model),
                    None => return Err(failed("must be named after the kind of its findings".to_owned())),
                }
            }
            let rows = arguments.corpora.read()?;
            if let Some(measure) = &arguments.texts {
                let texts = texts(&detectors, &rows, measure);
                let lines = texts.iter().map(|(found, text)| format!("{} {text}", if *found { '+' } else { '-' }));
                environment.print(&texts, &lines.collect::<Vec<_>>().join("\n"));
                return Ok(Exit::Ok);
            }
            let measures = evaluate(&detectors, &rows);
            environment.print(&measures, &table(&measures));
        }
        Command::Explain(arguments) => explain(environment, arguments)?,
        Command::Train(arguments) => {
            let rows = arguments.corpora.read()?;
            let model = train(&rows, &arguments.kind);
            let failed = |error: std::io::Error| {
                Failure::new(Exit::Failure, format!("`{}` can't be written: {error}", arguments.out.display()))
            };
            let written = model.written().map_err(|error| failed(error.into()))?;
            std::fs::write(&arguments.out, written).map_err(failed)?;
            let text = format!(
                "trained on {} texts, sha256:{}: {}",
                model.header.texts,
                model.header.data,
                arguments.out.display()
            );
            environment.print(&model.header, &text);
        }
    }
    Ok(Exit::Ok)
}

fn detectors(environment: &Environment, bundle: Option<&PathBuf>) -> Result<Detectors, Failure> {
    let config = environment.config()?;
    let path = bundle.unwrap_or(&config.bundle.path);
    Ok(Bundle::load(path, config.reading())?.rules.detectors)
}

fn table(measures: &[Measure]) -> String {
    let width = measures.iter().map(|measure| measure.name.len()).max().unwrap_or(0);
    let mut text = format!("{:<width$}  {:>6} of {:<6} {:>7}   95 %\n", "", "", "", "share");
    for measure in measures {
        let Measure { name, found, of, share, low, high } = measure;
        text.push_str(&format!("{name:<width$}  {found:>6} of {of:<6} {share:>7.4}   {low:.4} to {high:.4}\n"));
    }
    text.trim_end().to_owned()
}

fn explain(environment: &Environment, arguments: &Explain) -> Result<(), Failure> {
    let detectors = detectors(environment, arguments.bundle.as_ref())?;
    if arguments.draft {
        explain_draft(&detectors, &arguments.text);
        return arguments.case.as_deref().map_or(Ok(()), |case| explain_case(environment, arguments, case));
    }
    let views = Views::of(&arguments.text);
    for finding in detectors.screen_text(&arguments.source, &arguments.text, &views) {
        let shown = finding.span.map_or("", |(start, end)| arguments.text.part(start..end));
        print(&format!("{}/{} {} %: {shown}", finding.kind, finding.code, finding.confidence));
    }
    let injection =
        detectors.injection.as_ref().map(|model| (INJECTION, model, detectors.threshold(&arguments.source)));
    let others = detectors.models.iter().map(|(kind, model)| (kind.as_str(), model, detectors.threshold_of(kind)));
    let features = Features::of(views.folded.text());
    for (kind, model, threshold) in injection.into_iter().chain(others) {
        let score = model.worst(&features).map_or(0, |window| window.score);
        print(&format!("{kind}: {score} of 1000, threshold {threshold}; by"));
        for (feature, weight) in model.explain(views.folded.text(), 10) {
            print(&format!("  {weight:>7.3}  {feature:?}"));
        }
    }
    Ok(())
}

/// Prints the findings in a draft that has no sources, each with its words and what the model is advised to write.
fn explain_draft(detectors: &Detectors, text: &str) {
    let redacted = Values::new(ValueKey::new([0; 16]));
    let draft = Draft {
        text,
        sources: vec![],
        customer: vec![],
        has_sources: false,
        unknown_source: false,
        confidence: 100,
        locale: "",
        redacted: &redacted,
    };
    for finding in detectors.draft(&draft).findings {
        let words = finding.span.map_or("", |(start, end)| text.part(start..end));
        print(&format!("{}/{}: \"{words}\": {}", finding.kind, finding.code, detectors.suggestion(&finding)));
    }
    readings(detectors, text).iter().for_each(|line| print(&format!("  {line}")));
}

/// Prints what the policies make of a draft for a case of the bundle's tables.
fn explain_case(environment: &Environment, arguments: &Explain, case: &str) -> Result<(), Failure> {
    let config = environment.config()?;
    let path = arguments.bundle.as_ref().unwrap_or(&config.bundle.path);
    let folder = Folder::read(path).map_err(|error| Failure::new(Exit::Invalid, error))?;
    let attributes = arguments.attributes.as_deref().unwrap_or("{}");
    let wrong = |_| Failure::new(Exit::Usage, "`--attributes` is not a JSON object");
    let attributes = serde_json::from_str(attributes).map_err(wrong)?;
    let (now, draft, context) = (arguments.now.as_str(), arguments.text.as_str(), arguments.context.as_slice());
    let explained = explain_for(&folder, config.reading(), &Explained { now, draft, case, attributes, context })?;
    let Some(Explanation { disposition, policies, facts, .. }) = explained else {
        return Err(Failure::new(Exit::Failure, "the bundle evaluates no drafts"));
    };
    print(&format!("{}: by {}", disposition.name(), policies.join(", ")));
    print(&facts);
    Ok(())
}
