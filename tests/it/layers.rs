//! Checks which modules and crates each module may use, and the sizes of files and functions.

use std::collections::{BTreeMap, BTreeSet};
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
    ("sealing", &["model"]),
    ("connections", &[]),
    ("entropy", &["model"]),
    // The clock only stamps logs here and is not an input of a decision.
    ("telemetry", &["clock", "model"]),
    ("text_pool", &["model"]),
    // Features map values to values. They don't name each other, the clock or the settings, except as listed.
    ("caller", &["jose", "model"]),
    ("delegation", &["clock", "jose", "json", "model"]),
    // A transmitter of security events has the same kinds of keys as an issuer.
    ("caep", &["delegation", "jose", "json", "model"]),
    // Approvals have their own store, so that a consumption and its receipt are one transaction.
    ("approvals", &["jose", "json", "model", "sealing"]),
    // A bundle's entities are JSON, too.
    ("policy", &["json", "model"]),
    ("entities", &["json", "model", "policy"]),
    ("decision", &["model", "policy"]),
    ("obligations", &["decision", "model", "policy"]),
    ("audit", &["json", "model", "sealing"]),
    // Risk: findings in texts, what was seen before, amounts and rates, and the score of all of them.
    ("content", &["model"]),
    ("redact", &["model"]),
    ("rates", &["model", "policy"]),
    ("risk", &["model"]),
    ("risk_store", &["model"]),
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
            "risk_store",
            "sealing",
        ],
    ),
    // `api` sends recorded answers, so it names the proof of a record; its front measures the time of RPCs.
    ("api", &["approvals", "audit", "caller", "clock", "connections", "json", "model", "pdp", "telemetry"]),
    ("admin", &["connections", "pdp"]),
    // The desk renders what the PDP answers, and acts as the human whom it signed in.
    (
        "desk",
        &[
            "approvals",
            "audit",
            "caller",
            "clock",
            "connections",
            "entropy",
            "jose",
            "json",
            "model",
            "pdp",
            "policy",
            "telemetry",
        ],
    ),
    ("events", &["caller", "connections", "jose", "json", "model", "pdp"]),
    // A test of `workbench` names the types that read a bundle's files.
    (
        "workbench",
        &[
            "approvals",
            "audit",
            "bundle",
            "content",
            "entities",
            "json",
            "model",
            "pdp",
            "policy",
            "rates",
            "risk",
            "sealing",
        ],
    ),
    // These modules wire up the others.
    (
        "config",
        &[
            "approvals",
            "audit",
            "bundle",
            "caep",
            "caller",
            "delegation",
            "desk",
            "jose",
            "pdp",
            "policy",
            "telemetry",
            "risk_store",
        ],
    ),
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
            "desk",
            "entropy",
            "events",
            "jose",
            "model",
            "pdp",
            "telemetry",
            "risk_store",
            "sealing",
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
            "json",
            "model",
            "pdp",
            "telemetry",
            "workbench",
            "sealing",
        ],
    ),
];

/// Pairs of a crate and the modules that may use it. Crates that are not listed may be used anywhere.
const MAY_USE: &[(&str, &[&str])] = &[
    ("axum", &["admin", "connections", "desk", "events"]),
    ("aws_lc_rs", &["audit", "caller", "jose", "sealing"]),
    ("base64", &["audit", "content", "jose", "sealing", "workbench"]),
    ("cerberust", &["content"]),
    ("cedar_policy", &["audit", "decision", "entities", "pdp", "policy", "workbench"]),
    ("cedar_policy_core", &["entities", "policy"]),
    ("clap", &["cli"]),
    ("decancer", &["content"]),
    ("getrandom", &["entropy"]),
    ("opentelemetry", &["api", "telemetry"]),
    ("opentelemetry_otlp", &["telemetry"]),
    ("opentelemetry_sdk", &["telemetry"]),
    ("prometheus", &["telemetry"]),
    ("prost", &["api"]),
    ("prost_types", &["api"]),
    ("redis", &["risk_store"]),
    ("regex", &["content"]),
    ("reqwest", &["app", "audit", "delegation", "desk"]),
    ("rustix", &["audit", "connections", "text_pool"]),
    ("rustls", &["caller"]),
    ("siphasher", &["content"]),
    ("sqlx", &["approvals"]),
    ("tokio_rustls", &["api", "connections"]),
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

/// So many parameters are many. A few functions may have them, because each is an independent input.
const PARAMETERS_MANY: usize = 6;
const MANY_PARAMETERS_MAX: usize = 8;
const TUPLE_PARAMETERS_MAX: usize = 8;

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
    /// Type of the `impl` block that is being visited.
    implements: String,
    /// Methods that the file defines, by type.
    methods: Vec<(String, String)>,
    /// Methods that the file calls on `self`, by the type of `self`.
    calls: Vec<(String, String)>,
    /// Functions with many parameters, and functions with several parameters in a tuple.
    many_parameters: Vec<String>,
    tuple_parameters: Vec<String>,
    /// Segments of each path, with its line: `crate::a`, `tonic::Status`.
    paths: Vec<(Vec<String>, usize)>,
    functions: Vec<(String, usize, usize)>,
    test_lines: usize,
    groups: Vec<usize>,
}

impl Walk {
    /// Notes the lines of a function, from its signature to its end: its doc does not count.
    fn function(&mut self, signature: &syn::Signature, whole: proc_macro2::Span) {
        let start = signature.span().start().line;
        self.functions.push((signature.ident.to_string(), start, whole.end().line - start + 1));
    }

    fn parameters(&mut self, signature: &syn::Signature) {
        let typed: Vec<&syn::PatType> = signature
            .inputs
            .iter()
            .filter_map(|input| match input {
                syn::FnArg::Typed(typed) => Some(typed),
                syn::FnArg::Receiver(_) => None,
            })
            .collect();
        if typed.len() >= PARAMETERS_MANY {
            self.many_parameters.push(signature.ident.to_string());
        }
        let is_tuple = |typed: &&syn::PatType| {
            let named = match &*typed.ty {
                syn::Type::Reference(reference) => &*reference.elem,
                other => other,
            };
            matches!(named, syn::Type::Tuple(tuple) if tuple.elems.len() > 1)
        };
        if typed.iter().any(is_tuple) {
            self.tuple_parameters.push(signature.ident.to_string());
        }
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
        self.function(&function.sig, function.span());
        visit::visit_item_fn(self, function);
    }

    fn visit_item_impl(&mut self, block: &'a syn::ItemImpl) {
        if let (None, syn::Type::Path(path)) = (&block.trait_, &*block.self_ty) {
            let name = path.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
            let before = std::mem::replace(&mut self.implements, name);
            visit::visit_item_impl(self, block);
            self.implements = before;
        } else {
            visit::visit_item_impl(self, block);
        }
    }

    fn visit_expr_method_call(&mut self, call: &'a syn::ExprMethodCall) {
        if matches!(&*call.receiver, syn::Expr::Path(path) if path.path.is_ident("self")) {
            self.calls.push((self.implements.clone(), call.method.to_string()));
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_signature(&mut self, signature: &'a syn::Signature) {
        self.parameters(signature);
        visit::visit_signature(self, signature);
    }

    fn visit_impl_item_fn(&mut self, function: &'a syn::ImplItemFn) {
        self.methods.push((self.implements.clone(), function.sig.ident.to_string()));
        self.function(&function.sig, function.span());
        visit::visit_impl_item_fn(self, function);
    }

    // `pub(in crate::content)` names no dependency.
    fn visit_visibility(&mut self, _visibility: &'a syn::Visibility) {}

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
        for word in text.split(|character: char| !(character.is_alphanumeric() || character == '_' || character == ':'))
        {
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
        faults.extend(
            walk.groups.iter().map(|line| format!("{}:{line}: each module needs its own import line", source.file)),
        );
        for (path, line) in &walk.paths {
            let [first, named, ..] = path.as_slice() else { continue };
            if first == "crate" && *named != source.module && !below.contains(&named.as_str()) {
                faults.push(format!("{}:{line}: `{}` names `{named}`", source.file, source.module));
            }
            if first == "super" && named == "super" {
                faults.push(format!("{}:{line}: `super::super` hides a dependency; use `crate::`", source.file));
            }
            if source.file == ALONE && ["crate", "super"].contains(&first.as_str()) {
                faults.push(format!("{}:{line}: the verifier uses code of this crate", source.file));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn crates_are_used_only_by_their_modules() {
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

/// Files that name each other can't be read, tested or changed one by one. A file and those of its own folder are one module.
#[test]
fn no_files_name_each_other_in_a_circle() {
    let sources = sources();
    let files: BTreeSet<String> = sources.iter().map(|(source, _)| path_of(&source.file)).collect();
    let mut owners: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    for (source, walk) in &sources {
        for method in &walk.methods {
            owners.entry(method.clone()).or_default().insert(path_of(&source.file));
        }
    }
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (source, walk) in &sources {
        let file = path_of(&source.file);
        if ["lib", "main"].contains(&file.as_str()) {
            continue;
        }
        let named = names.entry(file.clone()).or_default();
        for (path, _) in &walk.paths {
            named.extend(resolved(&file, path, &files).filter(|other| !is_one_module(&file, other)));
        }
        for call in &walk.calls {
            // A method that several types or files have is found by its own file first.
            if let Some(owners) = owners.get(call).filter(|owners| !owners.contains(&file)) {
                named.extend(owners.iter().filter(|owner| !is_one_module(&file, owner)).cloned());
            }
        }
    }
    let reaches = |from: &String| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(file) = next.pop() {
            for other in names.get(&file).into_iter().flatten() {
                if seen.insert(other.clone()) {
                    next.push(other.clone());
                }
            }
        }
        seen
    };
    let circles: Vec<&String> = names.keys().filter(|file| reaches(file).contains(*file)).collect();
    assert!(circles.is_empty(), "files in circles: {circles:?}");
}

fn is_one_module(one: &str, other: &str) -> bool {
    one == other || one.starts_with(&format!("{other}::")) || other.starts_with(&format!("{one}::"))
}

/// `pdp/tokens.rs` as `pdp::tokens`.
fn path_of(file: &str) -> String {
    file.trim_end_matches(".rs").replace('/', "::")
}

/// The file that a path names: the longest of its beginnings that is one. A file declares its own folder, which is no use of it.
fn resolved(file: &str, path: &[String], files: &BTreeSet<String>) -> Option<String> {
    let own: Vec<&str> = file.split("::").collect();
    let whole: Vec<&str> = match path.first()?.as_str() {
        "crate" => path.iter().skip(1).map(String::as_str).collect(),
        "super" => own[..own.len() - 1].iter().copied().chain(path.iter().skip(1).map(String::as_str)).collect(),
        _ => own.iter().copied().chain(path.iter().map(String::as_str)).collect(),
    };
    (1..=whole.len()).rev().map(|length| whole[..length].join("::")).find(|name| files.contains(name))
}

#[test]
fn few_functions_have_many_parameters_or_pack_them_into_tuples() {
    let all = |of: fn(&Walk) -> &Vec<String>| {
        let sources = sources();
        sources
            .iter()
            .flat_map(|(source, walk)| {
                of(walk).iter().map(|name| format!("{}: {name}", source.file)).collect::<Vec<_>>()
            })
            .collect::<Vec<_>>()
    };
    let (many, tuples) = (all(|walk| &walk.many_parameters), all(|walk| &walk.tuple_parameters));
    assert!(
        many.len() <= MANY_PARAMETERS_MAX,
        "{} functions with {PARAMETERS_MANY} parameters or more: {many:#?}",
        many.len()
    );
    assert!(tuples.len() <= TUPLE_PARAMETERS_MAX, "{} functions with parameters in tuples: {tuples:#?}", tuples.len());
}

#[test]
fn files_and_functions_stay_below_their_line_limits() {
    let mut faults = vec![];
    for (source, walk) in sources() {
        let most = FILE_LINES.iter().find(|(file, _)| *file == source.file).map_or(FILE_LINES_MAX, |(_, most)| *most);
        let lines = source.lines - walk.test_lines;
        if lines > most {
            faults.push(format!("{}: {lines} lines, {most} are allowed", source.file));
        }
        for (name, line, length) in walk.functions.iter().filter(|(_, _, length)| *length > FUNCTION_LINES_MAX) {
            faults
                .push(format!("{}:{line}: `{name}` has {length} lines, {FUNCTION_LINES_MAX} are allowed", source.file));
        }
        if source.file == "main.rs" && source.lines >= 40 {
            faults.push("main.rs has 40 lines or more".into());
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_file_has_a_module_doc() {
    let silent: Vec<String> = sources()
        .into_iter()
        .filter(|(source, _)| !source.syntax.attrs.iter().any(|attribute| attribute.path().is_ident("doc")))
        .map(|(source, _)| source.file)
        .collect();
    assert!(silent.is_empty(), "no `//!` line in {silent:?}");
}

/// Two versions of one of these would be two wire formats, cryptographic backends or telemetry pipelines.
#[test]
fn the_dependency_tree_has_one_version_of_crypto_and_protocol_crates() {
    let output = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--offline", "--edges", "normal,dev", "--prefix", "none", "--format", "{p}"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let versions = |name: &str| {
        let lines = text.lines().filter_map(|line| line.split_once(' ')).filter(|(crate_name, _)| *crate_name == name);
        lines.filter_map(|(_, version)| version.split(' ').next()).collect::<BTreeSet<_>>().len()
    };
    for one in ["aws-lc-rs", "opentelemetry", "prost", "rustls", "sqlx-core", "tonic", "tokio"] {
        assert_eq!(versions(one), 1, "{one}");
    }
    for none in ["ring", "openssl", "openssl-sys", "native-tls", "p256", "rsa"] {
        assert_eq!(versions(none), 0, "{none}");
    }
}
