//! The commands that README and docs print. Each is one of the program, with options that exist, and each that needs no
//! special state is run against a server.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Output;

use crate::harness::people::{Desk, Issuer, credit};
use crate::harness::{Process, copy, policies, shell, temp};

/// Printed commands that are not run here, by their beginning, and why. Their options are checked.
const NOT_RUN: &[(&str, &str)] = &[
    ("countersign approvals show ID --draft FILE", "needs a draft under review; `texts` tests it"),
    ("countersign audit accept-loss", "needs a log that lost lines; `crash` and `audit` test it"),
    ("countersign audit check-proof", "needs a proof of an earlier command; `reading` and `proofs` test it"),
    ("countersign audit erase", "needs a human's token; `replay` tests it"),
    ("countersign audit evidence ID", "is a synopsis; `replay` tests it"),
    ("countersign audit prove", "needs a decision of the log; `reading` and `proofs` test it"),
    ("countersign audit show --agent refund-bot --details --follow", "does not end; `reading` tests the rest"),
    ("countersign audit verify --checkpoint-key", "needs the key's file; `reading` tests it"),
    ("countersign audit verify --expect-head", "needs the head that somebody noted; `audit` tests it"),
    ("countersign detectors evaluate FOLDER", "is a synopsis"),
    ("countersign detectors explain TEXT", "is a synopsis"),
    ("countersign detectors train FOLDER", "is a synopsis"),
    ("countersign keys rotate", "a key signs for ten minutes at least; `cli` tests it"),
    ("countersign store confirm", "needs a store that lost data; `replicas` tests it"),
];

/// A command that a page prints, and the line.
struct Printed {
    place: String,
    command: String,
    /// Whether it is in a block of commands, which a reader copies, or within a sentence.
    is_in_block: bool,
}

/// Returns every command in README and docs.
fn printed() -> Vec<Printed> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned(), "SECURITY.md".to_owned()];
    let docs = std::fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let docs = docs.map(|name| name.into_string().unwrap()).filter(|name| name.ends_with(".md"));
    pages.extend(docs.map(|name| format!("docs/{name}")));
    // `production` and `domains` run these pages as a whole.
    pages.retain(|page| !["docs/first-bundle.md", "docs/production.md"].contains(&page.as_str()));
    pages.sort();
    let mut found = vec![];
    for page in pages {
        let text = std::fs::read_to_string(root.join(&page)).unwrap();
        let mut is_in_block = false;
        for (index, line) in text.lines().enumerate() {
            if line.starts_with("```") {
                is_in_block = !is_in_block;
                continue;
            }
            let place = format!("{page}:{}", index + 1);
            let commands: Vec<&str> = match is_in_block {
                true => vec![line.split(" # ").next().unwrap().trim()],
                false => line.split('`').skip(1).step_by(2).collect(),
            };
            let commands = commands.into_iter().filter(|command| command.starts_with("countersign "));
            found.extend(commands.map(|command| Printed {
                place: place.clone(),
                command: command.to_owned(),
                is_in_block,
            }));
        }
    }
    found
}

/// Runs a command in a shell, as a reader would.
fn run(command: &str, folder: &Path, variables: &[(&str, &str)]) -> Output {
    shell(command, folder).envs(variables.iter().copied()).output().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Returns the commands of a synopsis: one for each alternative of the subcommand, with all optional parts.
fn expanded(command: &str) -> Vec<String> {
    let command = command.replace(['[', ']'], "");
    let alternatives = |word: &str| word.split('|').map(str::to_owned).collect::<Vec<_>>();
    let mut all = vec![String::new()];
    for word in command.split(' ') {
        all = all
            .iter()
            .flat_map(|before| alternatives(word).into_iter().map(move |word| format!("{before}{word} ")))
            .collect();
    }
    all
}

/// Help is printed only if everything before `--help` is known.
#[test]
fn each_printed_command_is_one_of_the_program() {
    let folder = temp();
    let printed = printed();
    assert!(printed.len() >= 40, "{}", printed.len());
    for Printed { place, command, .. } in printed {
        for command in expanded(&command) {
            let help = run(&format!("{command} --help"), folder.path(), &[("SERVER", "http://127.0.0.1:1")]);
            assert!(help.status.success(), "{place}: {command}: {}", said(&help));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_blocks_run_as_printed() {
    let folder = temp();
    copy(&policies(), &folder.path().join("policies"));
    std::fs::create_dir(folder.path().join("examples")).unwrap();
    for example in ["examples/authorize.yaml", "examples/credit.yaml", "examples/write.yaml"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(example);
        std::fs::copy(from, folder.path().join(example)).unwrap();
    }
    let data = folder.path().join("data");
    let server = Process::serve(&data, &[], |command| {
        command.env("COUNTERSIGN__ENVIRONMENT", "production");
    });
    let url = format!("http://{}", server.grpc);
    let audience = serde_json::json!({"aud": "countersign:production"});
    let token = Issuer::of(&data).human_with("lead-1", audience);
    let variables = [
        ("COUNTERSIGN_SERVER", url.as_str()),
        ("SERVER", &url),
        ("COUNTERSIGN_TOKEN", &token),
        ("COUNTERSIGN__ENVIRONMENT", "production"),
    ];
    let approval = Desk::new(crate::harness::channel(server.grpc).await).request(&credit(400)).await.unwrap().id;
    let keys = said(&run("countersign keys list", folder.path(), &variables));
    let kid = keys.lines().find(|line| line.starts_with("approval") && line.contains("next"));
    let kid = kid.and_then(|line| line.split_whitespace().nth(2)).unwrap_or_else(|| panic!("{keys}"));

    let mut left: BTreeSet<&str> = NOT_RUN.iter().map(|(beginning, _)| *beginning).collect();
    let mut count = 0;
    let mut commands: Vec<Printed> = printed().into_iter().filter(|printed| printed.is_in_block).collect();
    // A kill switch on everything stops the human of the other commands, too.
    let order = |printed: &Printed| {
        ["signals report", "signals list", "signals lift"]
            .iter()
            .position(|name| printed.command.contains(name))
            .map_or(0, |at| at + 1)
    };
    commands.sort_by_key(order);
    for Printed { place, command, .. } in commands {
        if let Some((beginning, _)) = NOT_RUN.iter().find(|(beginning, _)| command.starts_with(beginning)) {
            left.remove(beginning);
            continue;
        }
        let filled: Vec<String> = command
            .split(' ')
            .map(|word| match word {
                "ID" => approval.clone(),
                "KID" => kid.to_owned(),
                word => word.to_owned(),
            })
            .collect();
        let done = run(&filled.join(" "), folder.path(), &variables);
        assert!(done.status.success(), "{place}: {command}: {}", said(&done));
        count += 1;
    }
    assert!(count >= 20, "{count}");
    assert_eq!(left, BTreeSet::new(), "no page prints these");
    assert!(server.stop().success());
}

/// Sections of `docs/bundle.md` with a table of keys, and the file and type that read them.
const SECTIONS: &[(&str, &str, &str)] = &[
    ("## `bundle.yaml`", "src/bundle/manifest.rs", "Manifest"),
    ("### `development`", "src/model/chain.rs", "DevelopmentDefaults"),
    ("### `roles`", "src/model/roles.rs", "Roles"),
    ("### `checks`", "src/model/roles.rs", "CheckMade"),
    ("### `stronger`", "src/model/roles.rs", "Stronger"),
    ("### `content`", "src/model/roles.rs", "ContentRoles"),
    ("## `approvals.yaml`", "src/approvals/template.rs", "Templates"),
    ("### `pending`", "src/approvals/template.rs", "Caps"),
    ("### A template", "src/approvals/template.rs", "Template"),
    ("### A consent", "src/approvals/consent.rs", "ConsentTemplate"),
    ("## `rates.yaml`", "src/rates.rs", "Rates"),
    ("### A window of `calls`", "src/rates.rs", "CallRate"),
    ("### A window of `sums`", "src/rates.rs", "SumRate"),
    ("### A window of `distinct`", "src/rates.rs", "DistinctRate"),
    ("## `risk.yaml`", "src/risk.rs", "RiskRules"),
    ("### A weight", "src/risk.rs", "Factor"),
    ("## `constraints.yaml`", "src/bundle/constraints.rs", "Constraint"),
    ("## `detectors/*.yaml`", "src/content/rules.rs", "File"),
    ("### The words of `context`", "src/content/nearby.rs", "Context"),
    ("### A rule", "src/content/rules.rs", "Written"),
    ("### `detectors/claims-*.yaml`", "src/content/claims/lexicon.rs", "ClaimFile"),
    ("### A frame", "src/content/claims/lexicon.rs", "WrittenFrame"),
    ("### `detectors/settings.yaml`", "src/content.rs", "Settings"),
    ("### A model", "src/content.rs", "ModelSettings"),
    ("### A channel", "src/content.rs", "ChannelSettings"),
    ("## A request of `authorize`", "src/workbench/request.rs", "WrittenRequest"),
    ("## `tests/*.yaml`", "src/workbench/tables/form.rs", "File"),
    ("### `fixtures`", "src/workbench/tables/form.rs", "Fixtures"),
    ("### A case", "src/workbench/tables/form.rs", "Case"),
    ("### `expect`", "src/workbench/tables/form.rs", "Expect"),
];

/// Returns the names in the first column of the first table of a section.
fn keys(page: &str, section: &str) -> BTreeSet<String> {
    let (_, rest) = page.split_once(&format!("\n{section}\n")).unwrap_or_else(|| panic!("no section {section}"));
    let section = rest.split("\n#").next().unwrap();
    let table = section.split("\n|").skip(1).map(|line| line.split("\n\n").next().unwrap());
    table
        .filter_map(|line| Some(line.trim().strip_prefix('`')?.split_once('`')?.0.trim_start_matches('@').to_owned()))
        .collect()
}

/// Returns the names of a type's fields.
fn fields(file: &str, name: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let items = syn::parse_file(&text).unwrap().items;
    let found = items.iter().find_map(|item| match item {
        syn::Item::Struct(found) if found.ident == name => Some(&found.fields),
        _ => None,
    });
    found.unwrap().iter().map(|field| field.ident.as_ref().unwrap().to_string()).collect()
}

#[test]
fn the_page_about_bundles_has_every_key_and_no_other() {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/bundle.md")).unwrap();
    for (section, file, name) in SECTIONS {
        assert_eq!(keys(&page, section), fields(file, name), "{section}");
    }
    let annotations: BTreeSet<String> =
        countersign::policy::rule::ANNOTATIONS.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(keys(&page, "## Annotations of policies"), annotations);
    let context = countersign::model::trusted_context::CLAIMED
        .iter()
        .chain(&countersign::model::trusted_context::DERIVED)
        .chain(&countersign::model::trusted_context::REMEMBERED)
        .chain([&countersign::model::trusted_context::COMPUTED]);
    assert_eq!(keys(&page, "### `context`"), context.map(|name| (*name).to_owned()).collect());
}

/// A page that names a file of the project names one that exists.
#[test]
fn the_files_that_pages_name_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut pages: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "training/README.md"].map(|page| root.join(page)).into();
    for folder in ["docs", "docs/adr"] {
        pages.extend(std::fs::read_dir(root.join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
    let (mut named, mut missing) = (0, vec![]);
    for page in pages {
        let text = std::fs::read_to_string(&page).unwrap();
        // Every second part is code.
        for code in text.split('`').skip(1).step_by(2) {
            let is_file = ["src/", "tests/it/"].iter().any(|folder| code.starts_with(folder)) && code.ends_with(".rs");
            if is_file && !code.contains(['*', '<', ' ', '{']) {
                named += 1;
                missing.extend((!root.join(code).exists()).then(|| format!("{}: {code}", page.display())));
            }
        }
    }
    assert!(named > 100, "{named}");
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
