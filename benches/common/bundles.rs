//! Bundles that the benchmarks share.

use std::path::{Path, PathBuf};

use countersign::bundle::folder::Folder;

use crate::calls::policies;

/// Writes the reference bundle with rates that allow every call of a run, and returns its path.
pub(crate) fn unlimited(folder: &Path) -> PathBuf {
    let bundle = folder.join("policies");
    for (name, bytes) in Folder::read(&policies()).unwrap().files() {
        let lifted = |line: &str| match line.split_once("sustained:") {
            Some((before, _)) if name == "rates.yaml" => {
                format!("{before}sustained: 1000000, minutes: 1, burst: 1000000}}\n")
            }
            Some(_) | None => format!("{line}\n"),
        };
        let file = bundle.join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let text = std::str::from_utf8(bytes).unwrap();
        std::fs::write(file, text.lines().map(lifted).collect::<String>()).unwrap();
    }
    bundle
}
