//! Redis or Valkey servers started for one test, in temporary folders on free ports.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{temp, unprivileged};

/// Finds the server's program.
fn program() -> PathBuf {
    let found = [
        "/usr/bin/redis-server",
        "/usr/bin/valkey-server",
        "/usr/local/bin/redis-server",
        "/usr/local/bin/valkey-server",
    ];
    let found = found.into_iter().map(PathBuf::from).find(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!("Redis is missing: run `scripts/setup-tests`, or `sudo apt-get install redis-server`")
    })
}

/// A running server; killed when dropped.
pub(crate) struct Redis {
    folder: TempDir,
    pub(crate) port: u16,
    more: Vec<String>,
    server: Option<Child>,
}

impl Redis {
    /// Starts a server that writes nothing to disk by itself.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn start_with(more: &[&str]) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let more = more.iter().map(|argument| (*argument).to_owned()).collect();
        let mut redis = Self { folder: temp(), port, more, server: None };
        redis.resume();
        redis
    }

    /// Starts a server that accepts only TLS, with this certificate.
    pub(crate) fn start_tls(own: &super::pki::Svid, authority: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = temp();
        for (name, text) in [("own.pem", own.certificate.as_str()), ("own.key", &own.key), ("authority.pem", authority)]
        {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let file = folder.path().join("redis.conf");
        let text = format!(
            "bind 127.0.0.1\nport 0\ntls-port {port}\ntls-cert-file own.pem\ntls-key-file own.key\ntls-ca-cert-file authority.pem\n\
             tls-auth-clients no\nsave \"\"\n"
        );
        std::fs::write(&file, text).unwrap();
        let mut redis = Self { folder, port, more: vec![], server: None };
        redis.launch(&file, &[]);
        redis
    }

    /// Starts a sentinel that watches a primary.
    pub(crate) fn sentinel(primary: &Self) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let folder = temp();
        let file = folder.path().join("sentinel.conf");
        let text = format!(
            "bind 127.0.0.1\nport {port}\nsentinel monitor main 127.0.0.1 {} 1\nsentinel down-after-milliseconds main 500\n\
             sentinel failover-timeout main 2000\n",
            primary.port
        );
        std::fs::File::create(&file).unwrap().write_all(text.as_bytes()).unwrap();
        if super::is_root() {
            std::os::unix::fs::chown(&file, Some(super::NOBODY), Some(super::NOBODY)).unwrap();
        }
        let mut sentinel = Self { folder, port, more: vec!["--sentinel".into()], server: None };
        sentinel.spawn(&file, &["--sentinel".to_owned()]);
        sentinel
    }

    /// Starts the server. It loads `dump.rdb` if a `SAVE` wrote one, and is empty otherwise.
    pub(crate) fn resume(&mut self) {
        let file = self.folder.path().join("redis.conf");
        std::fs::write(&file, format!("bind 127.0.0.1\nport {}\nsave \"\"\nappendonly no\n", self.port)).unwrap();
        let more = self.more.clone();
        self.spawn(&file, &more);
    }

    fn launch(&mut self, file: &Path, more: &[String]) {
        let mut command = Command::new(program());
        command.arg(file).args(more).current_dir(self.folder.path()).stdout(Stdio::null()).env_clear();
        unprivileged(&mut command);
        self.server = Some(command.spawn().unwrap());
    }

    fn spawn(&mut self, file: &Path, more: &[String]) {
        self.launch(file, more);
        for _ in 0..1000 {
            if self.answers() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("Redis did not start");
    }

    fn answers(&self) -> bool {
        let asked = redis::Client::open(self.url())
            .and_then(|client| client.get_connection_with_timeout(Duration::from_millis(200)));
        asked.and_then(|mut connection| redis::cmd("PING").query::<String>(&mut connection)).is_ok()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Runs a command. Retries for five seconds, because a promotion by a sentinel closes connections.
    pub(crate) fn run(&self, command: &[&str]) -> redis::Value {
        let mut asked = redis::cmd(command[0]);
        command[1..].iter().for_each(|argument| {
            asked.arg(*argument);
        });
        let ask = || asked.query::<redis::Value>(&mut redis::Client::open(self.url())?.get_connection()?);
        for _ in 0..100 {
            if let Ok(answer) = ask() {
                return answer;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("Redis does not answer {command:?}")
    }

    /// Returns every key and value of the server as text.
    pub(crate) fn dump(&self) -> String {
        let redis::Value::Array(keys) = self.run(&["KEYS", "*"]) else { panic!("no list of keys") };
        let mut dump = format!("{keys:?}");
        for key in keys {
            let redis::Value::BulkString(key) = key else { continue };
            let key = String::from_utf8(key).unwrap();
            let held = match self.run(&["TYPE", &key]) {
                redis::Value::SimpleString(kind) if kind == "hash" => self.run(&["HGETALL", &key]),
                redis::Value::SimpleString(kind) if kind == "zset" => self.run(&["ZRANGE", &key, "0", "-1"]),
                redis::Value::SimpleString(kind) if kind == "set" => self.run(&["SMEMBERS", &key]),
                _ => self.run(&["GET", &key]),
            };
            let texts = format!("{held:?}");
            let bytes = match held {
                redis::Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                redis::Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(" "),
                _ => String::new(),
            };
            dump.push_str(&format!("{texts} {bytes}\n"));
        }
        dump
    }

    /// Deletes the server's dump file. The server must be stopped.
    pub(crate) fn forget(&self) {
        match std::fs::remove_file(self.folder.path().join("dump.rdb")) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            Ok(()) | Err(_) => {}
        }
    }

    pub(crate) fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    /// Sends the server a signal: `STOP` pauses it, `CONT` resumes it.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.server.as_ref().unwrap()), signal).unwrap();
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            // Ignore errors: the server may have ended already.
            let _ended = server.kill();
            let _waited = server.wait();
        }
    }
}

fn shown(value: &redis::Value) -> String {
    match value {
        redis::Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        other => format!("{other:?}"),
    }
}
