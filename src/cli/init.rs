//! The `countersign init` command.

use std::path::PathBuf;

use clap::ValueEnum;
use include_dir::{Dir, include_dir};

use super::{Environment, Exit, Failure};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Folder to write the bundle to; it must be new or empty
    folder: PathBuf,
    /// Domain that the bundle is written for
    #[arg(long, value_enum, default_value_t = Domain::Blank)]
    domain: Domain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Domain {
    /// The smallest complete bundle: one type of resource, two actions
    Blank,
    /// IT helpdesk: passwords, groups and devices, with checks and approvals
    Helpdesk,
    /// Customer support: the reference bundle, with risk, rates, approvals and rules for texts
    Support,
    /// Travel: bookings, changes and refunds, with values computed from the arguments
    Travel,
}

impl Domain {
    fn files(self) -> Dir<'static> {
        match self {
            Self::Blank => include_dir!("$CARGO_MANIFEST_DIR/domains/blank"),
            Self::Helpdesk => include_dir!("$CARGO_MANIFEST_DIR/domains/helpdesk"),
            Self::Support => include_dir!("$CARGO_MANIFEST_DIR/policies"),
            Self::Travel => include_dir!("$CARGO_MANIFEST_DIR/domains/travel"),
        }
    }

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

pub(super) fn run(environment: &Environment, arguments: &Arguments) -> Result<Exit, Failure> {
    let folder = arguments.folder.display();
    let failed = |error: std::io::Error| Failure::new(Exit::Failure, format!("`{folder}` can't be written: {error}"));
    std::fs::create_dir_all(&arguments.folder).map_err(failed)?;
    if std::fs::read_dir(&arguments.folder).map_err(failed)?.next().is_some() {
        return Err(Failure::new(Exit::Failure, format!("`{folder}` is not empty: name a new folder")));
    }
    let files = arguments.domain.files();
    files.extract(&arguments.folder).map_err(failed)?;
    let domain = arguments.domain.name();
    let text = format!(
        "wrote the bundle `{domain}` to {folder}\n\
         check it   countersign check {folder}\n\
         test it    countersign test {folder}\n\
         serve it   countersign serve --bundle {folder}\n\
         docs/first-bundle.md shows how to change it"
    );
    environment.print(&serde_json::json!({"folder": arguments.folder, "domain": domain}), &text);
    Ok(Exit::Ok)
}
