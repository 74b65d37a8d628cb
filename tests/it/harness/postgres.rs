//! PostgreSQL from Debian's package, in a temporary folder on a free port: one server that the tests of this
//! process share, each with a database of its own, and servers for tests that stop or replace theirs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tempfile::TempDir;

use super::{temp, unprivileged, within};

/// Finds the folder of PostgreSQL's programs.
pub(crate) fn programs() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok().into_iter().flatten();
    let found =
        versions.filter_map(|entry| Some(entry.ok()?.path().join("bin"))).find(|bin| bin.join("postgres").exists());
    found.unwrap_or_else(|| {
        panic!("PostgreSQL is missing: run `scripts/setup-tests`, or `sudo apt-get install postgresql`")
    })
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts the server that the tests of this process share. A shell that waits for the end of its standard
/// input, which is the end of this process, then stops the server and removes its folder.
fn shared_port() -> u16 {
    static SHARED: OnceLock<(u16, Child)> = OnceLock::new();
    let (port, _) = SHARED.get_or_init(|| {
        let mut own = Postgres::start();
        own.stop();
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", r#"folder=$1; shift; "$@" & cat; kill -INT $!; wait; rm -rf "$folder""#, "sh"]);
        shell.arg(own.folder.path()).arg(programs().join("postgres"));
        own.arguments(&mut shell);
        unprivileged(&mut shell);
        let shell = shell.stdin(Stdio::piped()).spawn().unwrap();
        own.wait_until_ready();
        let port = own.port;
        // The shell removes the folder.
        own.folder.disable_cleanup(true);
        (port, shell)
    });
    *port
}

/// A database of a running server.
pub(crate) struct Postgres {
    folder: TempDir,
    port: u16,
    database: String,
    /// The server, if it is this value's own; it is killed when the value is dropped.
    server: Option<Child>,
}

impl Postgres {
    /// Creates a database on the server that the tests of this process share.
    pub(crate) fn database() -> Self {
        static CREATED: AtomicUsize = AtomicUsize::new(0);
        let database = format!("test_{}", CREATED.fetch_add(1, Ordering::Relaxed));
        let postgres = Self { folder: temp(), port: shared_port(), database, server: None };
        postgres.create(&postgres.database);
        postgres
    }

    /// Starts a server of its own, for a test that stops it, replaces it or changes its settings.
    pub(crate) fn start() -> Self {
        let folder = temp();
        let mut initdb = Command::new(programs().join("initdb"));
        initdb.args(["--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "--pgdata"]);
        initdb
            .arg(folder.path().join("data"))
            .stdout(Stdio::null())
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .current_dir("/");
        unprivileged(&mut initdb);
        assert!(initdb.status().unwrap().success());
        let mut postgres = Self { folder, port: free_port(), database: "postgres".into(), server: None };
        postgres.resume();
        postgres
    }

    /// Starts a standby that replicates this server by streaming.
    pub(crate) fn standby(&self) -> Self {
        let folder = temp();
        let mut backup = Command::new(programs().join("pg_basebackup"));
        backup.args([
            "-h",
            "127.0.0.1",
            "-p",
            &self.port.to_string(),
            "-U",
            "postgres",
            "--no-sync",
            "--checkpoint=fast",
        ]);
        backup.args(["--wal-method=stream", "--write-recovery-conf", "--pgdata"]).arg(folder.path().join("data"));
        backup.stdout(Stdio::null()).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
        unprivileged(&mut backup);
        assert!(backup.status().unwrap().success());
        let mut standby = Self { folder, port: free_port(), database: "postgres".into(), server: None };
        standby.resume();
        standby
    }

    /// Promotes this standby to primary.
    pub(crate) async fn promote(&self) {
        self.run("SELECT CAST(pg_promote(true, 60) AS TEXT)").await;
    }

    pub(crate) async fn run(&self, sql: &str) {
        sqlx::any::install_default_drivers();
        let mut connection = <sqlx::AnyConnection as sqlx::Connection>::connect(&self.url()).await.unwrap();
        sqlx::query(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut connection).await.unwrap();
    }

    /// Waits until a standby has replayed everything that this server has written.
    pub(crate) async fn wait_for(&self, standby: &Self) {
        sqlx::any::install_default_drivers();
        let connect =
            async |server: &Self| <sqlx::AnyConnection as sqlx::Connection>::connect(&server.url()).await.unwrap();
        let (mut primary, mut follower) = (connect(self).await, connect(standby).await);
        let written: String =
            sqlx::query_scalar("SELECT CAST(pg_current_wal_lsn() AS TEXT)").fetch_one(&mut primary).await.unwrap();
        let has = format!("SELECT COALESCE(pg_last_wal_replay_lsn() >= CAST('{written}' AS pg_lsn), false)");
        let mut has_all =
            async || sqlx::query_scalar::<_, bool>(sqlx::AssertSqlSafe(has.clone())).fetch_one(&mut follower).await;
        within("standby that has everything", async {
            while !has_all().await.unwrap() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    /// Dumps the database into a file, as a backup.
    pub(crate) fn dump(&self, to: &Path) {
        let mut dump = Command::new(programs().join("pg_dump"));
        let port = self.port.to_string();
        let dumped = dump
            .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-Fc", "-f"])
            .arg(to)
            .arg(&self.database)
            .status()
            .unwrap();
        assert!(dumped.success());
    }

    /// Replaces the content of the database with that of a dump.
    pub(crate) fn restore_dump(&self, from: &Path) {
        let mut restore = Command::new(programs().join("pg_restore"));
        restore.args([
            "-h",
            "127.0.0.1",
            "-p",
            &self.port.to_string(),
            "-U",
            "postgres",
            "--clean",
            "--if-exists",
            "-d",
            &self.database,
        ]);
        assert!(restore.arg(from).status().unwrap().success());
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Restarts the server so that it accepts only TLS, with this certificate.
    pub(crate) fn require_tls(&mut self, own: &super::pki::Svid) {
        use std::os::unix::fs::{PermissionsExt, chown};
        self.stop();
        for (name, text) in [("server.crt", &own.certificate), ("server.key", &own.key)] {
            let path = self.data().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
            if super::is_root() {
                chown(&path, Some(super::NOBODY), Some(super::NOBODY)).unwrap();
            }
        }
        std::fs::write(self.data().join("pg_hba.conf"), "hostssl all all 127.0.0.1/32 trust\n").unwrap();
        let mut settings = std::fs::read_to_string(self.data().join("postgresql.conf")).unwrap();
        settings.push_str("ssl = on\n");
        std::fs::write(self.data().join("postgresql.conf"), settings).unwrap();
        self.resume();
    }

    pub(crate) fn url(&self) -> String {
        self.url_of(&self.database)
    }

    /// Returns the URL of a database on this server.
    pub(crate) fn url_of(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Creates a database.
    pub(crate) fn create(&self, name: &str) {
        let mut create = Command::new(programs().join("createdb"));
        let created =
            create.args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-U", "postgres", name]).status().unwrap();
        assert!(created.success());
    }

    /// Path of the server's data folder.
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Starts the server and waits until it accepts connections.
    pub(crate) fn resume(&mut self) {
        let mut command = Command::new(programs().join("postgres"));
        self.arguments(&mut command);
        unprivileged(&mut command);
        self.server = Some(command.spawn().unwrap());
        self.wait_until_ready();
    }

    /// Adds the server's arguments and surroundings to a command.
    fn arguments(&self, command: &mut Command) {
        command.arg("-D").arg(self.data()).arg("-k").arg(self.folder.path()).args(["-p", &self.port.to_string()]);
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off", "-c", "max_connections=300"]);
        command.stdout(Stdio::null()).stderr(Stdio::null()).env_clear().env("PATH", "/usr/bin:/bin").current_dir("/");
    }

    fn wait_until_ready(&self) {
        for _ in 0..400 {
            let mut ready = Command::new(programs().join("pg_isready"));
            if ready.args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()]).status().unwrap().success() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(25));
        }
        panic!("PostgreSQL did not start");
    }

    /// Shuts the server down without waiting for its clients.
    pub(crate) fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // SIGINT requests the fast shutdown, which does not wait for clients.
            rustix::process::kill_process(rustix::process::Pid::from_child(&server), rustix::process::Signal::INT)
                .unwrap();
            server.wait().unwrap();
        }
    }

    /// Copies the data folder, as a backup. The server must be stopped.
    pub(crate) fn back_up(&self, to: &Path) {
        assert!(Command::new("cp").arg("-a").arg(self.data()).arg(to).status().unwrap().success());
    }

    /// Replaces the data folder with a copy. The server must be stopped.
    pub(crate) fn restore(&self, from: &Path) {
        std::fs::remove_dir_all(self.data()).unwrap();
        assert!(Command::new("cp").arg("-a").arg(from).arg(self.data()).status().unwrap().success());
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // Ignore errors: the server may have ended already.
            let _ended = server.kill();
            let _waited = server.wait();
        }
    }
}
