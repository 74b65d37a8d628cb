//! Checks which modules and crates each module may use, and the sizes of files and functions.

use std::path::{Path, PathBuf};

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// Pairs of a module and the modules that it may name. A module without a row fails the test.
const MAY_NAME: &[(&str, &[&str])] = &[
    // The lowest layer has values and seams.
    ("json", &[]),
    ("model", &["json"]),
    ("jose", &["json", "model"]),
    ("clock", &["model"]),
    ("connections", &[]),
    ("entropy", &["model"]),
    // The clock only stamps logs here and is not an input of a decision.
    ("telemetry", &["clock", "model"]),
    ("text_pool", &["model"]),
    // Features map values to values. They don't name each other, the clock or the settings, except as listed.
    ("caller", &["jose", "model"]),
    ("delegation", &["jose", "json", "model"]),
    // A transmitter of security events has the same kinds of keys as an issuer.
    ("caep", &["delegation", "jose", "json", "model"]),
    // Approvals have their own store, so that a consumption and its receipt are one transaction.
    ("approvals", &["jose", "json", "model"]),
    // A bundle's entities are JSON, too.
    ("policy", &["json", "model"]),
    ("entities", &["json", "model", "policy"]),
    ("decision", &["model", "policy"]),
    ("obligations", &["decision", "model", "policy"]),
    ("audit", &["json", "model"]),
    // Risk: findings in texts, what was seen before, amounts and rates, and the score of all of them.
    ("content", &["model"]),
    ("redact", &["model"]),
    ("rates", &["model", "policy"]),
    ("risk", &["model"]),
    ("windows", &["model"]),
    // Only this module knows all parts of a bundle.
    ("bundle", &["approvals", "content", "json", "model", "policy", "rates", "risk"]),
    // Only the pipelines define the order of the steps.
    (
        "pdp",
        &[
            "approvals",
            "audit",
            "bundle",
            "caep",
            "caller",
            "clock",
            "content",
            "decision",
            "delegation",
            "entities",
            "entropy",
            "jose",
            "json",
            "model",
            "obligations",
            "policy",
            "rates",
            "redact",
            "risk",
            "telemetry",
            "text_pool",
            "windows",
        ],
    ),
    // `api` sends recorded answers, so it names the proof of a record; its front measures the time of RPCs.
    ("api", &["approvals", "audit", "caller", "clock", "connections", "json", "model", "pdp", "telemetry"]),
    ("admin", &["connections", "pdp"]),
    ("events", &["caller", "connections", "jose", "json", "model", "pdp"]),
    ("workbench", &["bundle", "content", "entities", "json", "model", "pdp", "policy"]),
    // These modules wire up the others.
    ("config", &["approvals", "audit", "bundle", "caep", "caller", "delegation", "jose", "pdp", "policy", "telemetry", "windows"]),
    (
        "app",
        &[
            "admin",
            "api",
            "approvals",
            "audit",
            "bundle",
            "caep",
            "caller",
            "clock",
            "config",
            "delegation",
            "entropy",
            "events",
            "jose",
            "model",
            "pdp",
            "telemetry",
            "windows",
        ],
    ),
    // The command line: `authorize --local` runs the pipeline's own steps without a server.
    (
        "cli",
        &[
            "api",
            "app",
            "audit",
            "bundle",
            "clock",
            "config",
            "content",
            "delegation",
            "entropy",
            "jose",
            "model",
            "pdp",
            "telemetry",
            "workbench",
        ],
    ),
];

/// Pairs of a crate and the modules that may use it. Crates that are not listed may be used anywhere.
const MAY_USE: &[(&str, &[&str])] = &[
    ("axum", &["admin", "events"]),
    ("aws_lc_rs", &["caller", "jose"]),
    ("base64", &["content", "jose", "workbench"]),
    ("cerberust", &["content"]),
    ("cedar_policy", &["decision", "entities", "pdp", "policy", "workbench"]),
    ("cedar_policy_core", &["policy"]),
    ("clap", &["cli"]),
    ("decancer", &["content"]),
    ("getrandom", &["entropy"]),
    ("opentelemetry", &["api", "telemetry"]),
    ("opentelemetry_otlp", &["telemetry"]),
    ("opentelemetry_sdk", &["telemetry"]),
    ("prometheus", &["telemetry"]),
    ("prost", &["api"]),
    ("prost_types", &["api"]),
    ("redis", &["windows"]),
    ("regex", &["content"]),
    ("reqwest", &["app", "audit", "delegation"]),
    ("rustix", &["audit", "connections", "text_pool"]),
    ("rustls", &["caller"]),
    ("siphasher", &["content"]),
    ("sqlx", &["approvals"]),
    ("tokio_rustls", &["api", "events"]),
    ("tonic", &["api"]),
    ("tonic_health", &["api"]),
    ("tonic_reflection", &["api"]),
    ("tonic_types", &["api"]),
    ("tower", &["api"]),
    ("tracing_subscriber", &["telemetry"]),
    ("unicode_normalization", &["content"]),
    ("unicode_security", &["content"]),
    ("x509_parser", &["caller"]),
];

/// `audit/verify.rs` checks the writer, so it must share no code with it.
const ALONE: &str = "audit/verify.rs";

const FUNCTION_LINES_MAX: usize = 70;
const FILE_LINES_MAX: usize = 400;

/// Files with limits of their own, so that further growth still fails.
const FILE_LINES: &[(&str, usize)] = &[];

struct Source {
    file: String,
    module: String,
    lines: usize,
    syntax: syn::File,
}

#[derive(Default)]
struct Walk {
    /// Segments of each path, with its line: `crate::a`, `tonic::Status`.
    paths: Vec<(Vec<String>, usize)>,
    functions: Vec<(String, usize, usize)>,
    test_lines: usize,
    groups: Vec<usize>,
}

impl Walk {
    fn function(&mut self, name: &syn::Ident, span: proc_macro2::Span) {
        self.functions.push((name.to_string(), span.start().line, span.end().line - span.start().line + 1));
    }

    fn tree(&mut self, prefix: Vec<String>, tree: &syn::UseTree) {
        let with = |name: &syn::Ident| [prefix.clone(), vec![name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.tree(with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => self.paths.push((with(&name.ident), name.span().start().line)),
            syn::UseTree::Rename(name) => self.paths.push((with(&name.ident), name.span().start().line)),
            syn::UseTree::Glob(glob) => self.paths.push((prefix, glob.span().start().line)),
            syn::UseTree::Group(group) => {
                // Each module needs its own import line, because a group at the root would hide dependencies.
                if prefix == ["crate"] {
                    self.groups.push(group.span().start().line);
                }
                group.items.iter().for_each(|item| self.tree(prefix.clone(), item));
            }
        }
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| attribute.path().is_ident("cfg") && quote(attribute).contains("test"))
}

fn quote(attribute: &syn::Attribute) -> String {
    attribute.meta.require_list().map(|list| list.tokens.to_string()).unwrap_or_default()
}

impl<'a> Visit<'a> for Walk {
    fn visit_item_mod(&mut self, module: &'a syn::ItemMod) {
        if is_test(&module.attrs) {
            self.test_lines += module.span().end().line - module.span().start().line + 1;
            return;
        }
        visit::visit_item_mod(self, module);
    }

    fn visit_item_fn(&mut self, function: &'a syn::ItemFn) {
        self.function(&function.sig.ident, function.span());
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        self.function(&function.sig.ident, function.span());
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        self.tree(vec![], &item.tree);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        let segments = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.paths.push((segments, path.span().start().line));
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, found: &'a syn::Macro) {
        visit::visit_macro(self, found);
        // A macro contains tokens instead of paths, so `a::b` is read off their text.
        let text = found.tokens.to_string().replace(" :: ", "::");
        for word in text.split(|character: char| !(character.is_alphanumeric() || character == '_' || character == ':')) {
            if word.contains("::") {
                self.paths.push((word.split("::").map(str::to_owned).collect(), found.span().start().line));
            }
        }
    }
}

fn sources() -> Vec<(Source, Walk)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![];
    collect(&root, &mut files);
    files
        .into_iter()
        .map(|path| {
            let file = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
            let module = file.split(['/', '.']).next().unwrap().to_owned();
            let text = std::fs::read_to_string(&path).unwrap();
            let syntax = syn::parse_file(&text).unwrap();
            let mut walk = Walk::default();
            walk.visit_file(&syntax);
            (Source { file, module, lines: text.lines().count(), syntax }, walk)
        })
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files.sort();
}

#[test]
fn modules_name_only_the_layers_below() {
    let mut faults = vec![];
    for (source, walk) in sources() {
        if ["main", "lib"].contains(&source.module.as_str()) {
            continue;
        }
        let Some((_, below)) = MAY_NAME.iter().find(|(name, _)| *name == source.module) else {
            faults.push(format!("{}: module `{}` has no row in MAY_NAME", source.file, source.module));
            continue;
        };
        faults.extend(walk.groups.iter().map(|line| format!("{}:{line}: one import line a module", source.file)));
        for (path, line) in &walk.paths {
            let [first, named, ..] = path.as_slice() else { continue };
            if first == "crate" && *named != source.module && !below.contains(&named.as_str()) {
                faults.push(format!("{}:{line}: `{}` names `{named}`", source.file, source.module));
            }
            if first == "super" && named == "super" {
                faults.push(format!("{}:{line}: `super::super` hides an arrow; write `crate::`", source.file));
            }
            if source.file == ALONE && ["crate", "super"].contains(&first.as_str()) {
                faults.push(format!("{}:{line}: the verifier names code of ours", source.file));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn crates_stay_in_their_rooms() {
    let mut faults = vec![];
    for (source, walk) in sources() {
        for (path, line) in &walk.paths {
            let row = path.first().and_then(|first| MAY_USE.iter().find(|(name, _)| name == first));
            if let Some((name, rooms)) = row
                && path.len() > 1
                && !rooms.contains(&source.module.as_str())
            {
                faults.push(format!("{}:{line}: `{}` uses `{name}`", source.file, source.module));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn files_and_functions_fit_their_budgets() {
    let mut faults = vec![];
    for (source, walk) in sources() {
        let most = FILE_LINES.iter().find(|(file, _)| *file == source.file).map_or(FILE_LINES_MAX, |(_, most)| *most);
        let lines = source.lines - walk.test_lines;
        if lines > most {
            faults.push(format!("{}: {lines} lines, {most} are allowed", source.file));
        }
        for (name, line, length) in walk.functions.iter().filter(|(_, _, length)| *length > FUNCTION_LINES_MAX) {
            faults.push(format!("{}:{line}: `{name}` has {length} lines, {FUNCTION_LINES_MAX} are allowed", source.file));
        }
        if source.file == "main.rs" && source.lines >= 40 {
            faults.push("main.rs has 40 lines or more".into());
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|(source, _)| !source.syntax.attrs.iter().any(|attribute| attribute.path().is_ident("doc")))
        .map(|(source, _)| source.file)
        .collect();
    assert!(silent.is_empty(), "no `//!` line in {silent:?}");
}

/// Two versions of one of these would be two wire formats, cryptographic backends or telemetry pipelines.
#[test]
fn the_tree_has_one_cryptographic_backend_and_one_of_each_wire() {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--edges", "normal,dev", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let versions = |name: &str| {
        let lines = text.lines().filter_map(|line| line.split_once(' ')).filter(|(crate_name, _)| *crate_name == name);
        lines.filter_map(|(_, version)| version.split(' ').next()).collect::<std::collections::BTreeSet<_>>().len()
    };
    for one in ["aws-lc-rs", "opentelemetry", "prost", "rustls", "sqlx-core", "tonic", "tokio"] {
        assert_eq!(versions(one), 1, "{one}");
    }
    for none in ["ring", "openssl", "openssl-sys", "native-tls", "p256", "rsa"] {
        assert_eq!(versions(none), 0, "{none}");
    }
}
