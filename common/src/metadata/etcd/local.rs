//! A real etcd for tests: found on this machine, started on the loopback with a data directory of its own, stopped by its id.
#![allow(clippy::disallowed_methods)] // real files, processes and clocks: this is the other side of the seam

use std::io::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Certificates by their names in its directory; clients need one too.
const TLS_FLAGS: &[&str] =
    &["--cert-file=certificate.pem", "--key-file=key.pem", "--trusted-ca-file=ca.pem", "--client-cert-auth"];
/// Longest wait for a started etcd to listen.
const START: Duration = Duration::from_secs(30);

/// Paths of etcd binaries to try: `GEMINGA_ETCD` (a list as in PATH), what `tests/etcd` installed, and PATH.
fn candidates() -> Vec<PathBuf> {
    let given = std::env::var_os("GEMINGA_ETCD").unwrap_or_default();
    let mut paths: Vec<PathBuf> = std::env::split_paths(&given).collect();
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    if let Some(cache) = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home) {
        paths.extend(["3.6", "3.4"].map(|v| cache.join(format!("geminga-tests/etcd-{v}/etcd"))));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    paths.extend(std::env::split_paths(&path).map(|dir| dir.join("etcd")));
    paths.into_iter().filter(|path| path.is_file()).collect()
}

/// A binary of the given minor version, such as `3.6`, or of any. When there is none it says so on standard error, for
/// `tests/run` to count, and answers `None`.
///
/// # Panics
/// When there is none and `CI` is set: nothing may be left out there.
#[must_use]
pub fn find(what: &str, version: Option<&str>) -> Option<PathBuf> {
    let found = candidates().into_iter().find(|path| version.is_none_or(|wanted| is_version(path, wanted)));
    if found.is_none() {
        let wanted = version.unwrap_or("of any version");
        let mut err = std::io::stderr();
        let _said = writeln!(err, "left out: {what}: no etcd {wanted}; `tests/etcd` installs one");
        assert!(
            std::env::var_os("CI").is_none(),
            "{what} needs etcd {wanted}, and with CI set nothing is left out"
        );
    }
    found
}

fn is_version(path: &Path, wanted: &str) -> bool {
    let Ok(output) = Command::new(path).arg("--version").output() else { return false };
    String::from_utf8_lossy(&output.stdout).contains(&format!("etcd Version: {wanted}."))
}

/// A running etcd. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct LocalEtcd {
    binary: PathBuf,
    dir: PathBuf,
    ports: (u16, u16),
    tls: bool,
    child: Option<Child>,
}

impl LocalEtcd {
    /// Starts one member and waits until it listens.
    ///
    /// # Panics
    /// When it does not come up.
    #[must_use]
    pub fn start(binary: &Path) -> Self {
        Self::begin(binary, false)
    }

    /// The same with TLS both ways: an authority of its own vouches for the server, and clients need a certificate of it.
    /// `None`, with a word on standard error, without `openssl` to make certificates with.
    ///
    /// # Panics
    /// When it does not come up, or nothing may be left out.
    #[must_use]
    pub fn start_with_tls(binary: &Path) -> Option<Self> {
        let there = Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_ok();
        if !there {
            let _said = writeln!(std::io::stderr(), "left out: TLS to etcd: no openssl");
            assert!(std::env::var_os("CI").is_none(), "TLS to etcd needs openssl");
            return None;
        }
        Some(Self::begin(binary, true))
    }

    fn begin(binary: &Path, tls: bool) -> Self {
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let [clients, peers] = crate::ports::free().expect("the loopback has free ports");
        let dir = parent.join(format!("geminga-etcd-{}-{}", std::process::id(), clients));
        std::fs::create_dir_all(&dir).expect("a directory for etcd");
        let mut etcd = Self { binary: binary.to_owned(), dir, ports: (clients, peers), tls, child: None };
        if tls {
            etcd.certify();
        }
        etcd.resume();
        etcd
    }

    /// Its client URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.tls { "https" } else { "http" }, self.ports.0)
    }

    /// An authority, and a certificate of it for the loopback.
    fn certify(&self) {
        let openssl = |line: &str| {
            let made = Command::new("openssl").args(line.split(' ')).current_dir(&self.dir).output();
            let made = made.expect("openssl runs");
            assert!(made.status.success(), "{line}: {}", String::from_utf8_lossy(&made.stderr));
        };
        let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=authority -days 2"));
        openssl(&format!("req {key} -keyout key.pem -out request.pem -subj /CN=etcd"));
        std::fs::write(self.dir.join("names"), "subjectAltName=IP:127.0.0.1\n").expect("a file");
        let sign = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out certificate.pem";
        openssl(&format!("x509 -req -in request.pem {sign}"));
    }

    /// A file of its TLS, PEM: `ca`, `certificate` or `key`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn pem(&self, what: &str) -> Vec<u8> {
        std::fs::read(self.dir.join(format!("{what}.pem"))).expect("it was made at the start")
    }

    /// Sends a signal, such as `-STOP`.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn signal(&self, signal: &str) {
        let id = self.child.as_ref().expect("it runs").id().to_string();
        assert!(Command::new("kill").args([signal, &id]).status().expect("kill runs").success());
    }

    /// SIGKILL. What it has is kept for [`Self::resume`].
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _gone_already = child.kill();
            let _status = child.wait();
        }
    }

    /// Starts it again on the same ports and data.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn resume(&mut self) {
        let (client, peer) = (self.url(), format!("http://127.0.0.1:{}", self.ports.1));
        let child = Command::new(&self.binary)
            .args(["--name", "one", "--log-level", "error", "--heartbeat-interval", "100"])
            .args(["--election-timeout", "1000", "--data-dir"])
            .arg(self.dir.join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("one={peer}")])
            .args(if self.tls { TLS_FLAGS } else { &[] })
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcd starts");
        self.child = Some(child);
        let begun = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.ports.0)).is_err() {
            let status = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            assert!(status.is_none(), "etcd ended: {status:?}");
            assert!(begun.elapsed() < START, "etcd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for LocalEtcd {
    fn drop(&mut self) {
        self.kill();
        let _left_behind = std::fs::remove_dir_all(&self.dir);
    }
}
