//! Witnesses note heads where someone who can write the log can't change them: in a file on another volume,
//! or at a service behind a URL. A witness shows what the log itself can't: that a whole data folder was
//! replaced by an earlier copy.

use std::fs::OpenOptions;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::audit::NotedHead;
use crate::json;
use crate::model::head::Head;

/// Timeout of a request to a service.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Place to which heads are appended.
#[derive(Debug)]
pub enum Witness {
    /// File with one JSON line for each head.
    File(PathBuf),
    /// `https://` URL that takes each head as the body of a POST.
    Url(String, reqwest::Client),
}

/// Note of a head, as a witness receives it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    replica: String,
    log: String,
    index: u64,
    hash: String,
    at: String,
}

impl Witness {
    /// Creates a witness for a file's path or an `https://` URL.
    ///
    /// # Errors
    /// When the operating system's certificate authorities can't be read.
    pub fn new(place: &str) -> Result<Self, reqwest::Error> {
        if !place.starts_with("https://") {
            return Ok(Self::File(PathBuf::from(place)));
        }
        let client = reqwest::Client::builder()
            .timeout(TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .https_only(true)
            .build()?;
        Ok(Self::Url(place.to_owned(), client))
    }

    /// Notes a head of this replica's log.
    ///
    /// # Errors
    /// When the file can't be written, or the service does not answer with success.
    pub async fn append(&self, replica: &str, log: &str, head: &Head, at: &str) -> io::Result<()> {
        let Head { index, hash } = head.clone();
        let statement = Statement { replica: replica.to_owned(), log: log.to_owned(), index, hash, at: at.to_owned() };
        let mut line = json::canonical(&statement);
        match self {
            Self::File(path) => {
                line.push(b'\n');
                let path = path.clone();
                tokio::task::spawn_blocking(move || append(&path, &line)).await.map_err(io::Error::other)?
            }
            Self::Url(url, client) => {
                let sent = client.post(url).header("content-type", "application/json").body(line).send().await;
                sent.and_then(reqwest::Response::error_for_status).map(|_| ()).map_err(io::Error::other)
            }
        }
    }

    /// Returns this replica's head with the highest index in the file; `None` for a missing file, and for a
    /// service, which is not asked.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn last(&self, replica: &str) -> io::Result<Option<NotedHead>> {
        let Self::File(path) = self else { return Ok(None) };
        let heads = match read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            heads => heads?,
        };
        let last = heads.into_iter().filter(|(of, _)| of == replica).max_by_key(|(_, head)| head.index);
        Ok(last.map(|(_, head)| NotedHead { head, place: format!("the witness `{}`", path.display()) }))
    }
}

/// Reads the heads in a witness' file, each with its replica. Lines that can't be parsed, such as a torn last
/// line, are skipped.
///
/// # Errors
/// When the file can't be read.
pub fn read(path: &Path) -> io::Result<Vec<(String, Head)>> {
    let mut heads = vec![];
    for line in BufReader::new(std::fs::File::open(path)?).lines() {
        if let Ok(Statement { replica, index, hash, .. }) = serde_json::from_str(&line?) {
            heads.push((replica, Head { index, hash }));
        }
    }
    Ok(heads)
}

fn append(path: &Path, line: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).mode(0o640).open(path)?;
    file.write_all(line)?;
    file.sync_data()
}
