//! The real binary as a child process: started on free ports with a data directory, killed by its own id, never left behind.
//!
//! Clocks and files are the real ones here: these tests are about the process as its user sees it.
#![allow(clippy::disallowed_methods)]

use anyhow::{Context as _, Result, bail, ensure};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Longest wait for a ready line or for the end of a process that should refuse to start.
const LIMIT: Duration = Duration::from_secs(30);

/// Path of the binary: `GEMINGA_BIN`, or the one of this build, brought up to date first.
///
/// # Errors
/// The build fails.
pub fn binary() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if let Some(path) = std::env::var_os("GEMINGA_BIN") {
        return Ok(PathBuf::from(path));
    }
    BUILT.get_or_init(|| build().map_err(|why| format!("{why:#}"))).clone().map_err(anyhow::Error::msg)
}

fn build() -> Result<PathBuf> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--locked", "-p", "geminga"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    // Test programs lie in `deps` beside the binaries of the same profile.
    let mut dir = std::env::current_exe()?;
    dir.pop();
    dir.pop();
    if dir.ends_with("release") {
        command.arg("--release");
    }
    ensure!(command.status()?.success(), "building the binary failed");
    Ok(dir.join("geminga"))
}

/// A running `geminga standalone`. Dropping it kills it.
pub struct Standalone {
    child: Child,
    /// Service URL from the ready line.
    pub pulsar: String,
    /// Admin URL from the ready line.
    pub http: String,
    /// Time from spawn to the ready line.
    pub ready_after: Duration,
}

fn command(data_dir: &Path, more: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary()?);
    command.args(["standalone", "--pulsar-port", "0", "--http-port", "0", "--data-dir"]).arg(data_dir);
    if !more.contains(&"--log") {
        command.args(["--log", "warn"]);
    }
    command.args(more).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    Ok(command)
}

impl Standalone {
    /// Starts the server and waits for its ready line.
    ///
    /// # Errors
    /// It ends, or says something else, or nothing within the limit.
    pub fn start(data_dir: &Path, more: &[&str]) -> Result<Self> {
        Self::start_with(data_dir, more, Stdio::inherit())
    }

    /// As [`Self::start`], with what it logs appended to a file.
    ///
    /// # Errors
    /// As [`Self::start`], or the file cannot be written.
    pub fn start_logged(data_dir: &Path, more: &[&str], log: &Path) -> Result<Self> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        Self::start_with(data_dir, more, log.into())
    }

    fn start_with(data_dir: &Path, more: &[&str], log: Stdio) -> Result<Self> {
        Self::spawn(command(data_dir, more)?.stderr(log), data_dir)
    }

    /// As [`Self::start_logged`], in a shell that was told `ulimit` first, such as `-n 160`.
    ///
    /// # Errors
    /// As [`Self::start_logged`], or the shell refuses.
    pub fn start_limited(ulimit: &str, data_dir: &Path, more: &[&str], log: &Path) -> Result<Self> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let bare = command(data_dir, more)?;
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("ulimit {ulimit} && exec \"$0\" \"$@\""));
        shell.arg(bare.get_program()).args(bare.get_args());
        Self::spawn(shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log), data_dir)
    }

    fn spawn(command: &mut Command, data_dir: &Path) -> Result<Self> {
        let begun = Instant::now();
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().context("standard output is piped")?;
        let (line, lines) = std::sync::mpsc::sync_channel(1);
        let _reader = std::thread::Builder::new().name("ready-line".into()).spawn(move || {
            let mut text = String::new();
            let read = BufReader::new(stdout).read_line(&mut text);
            // The test may have given up meanwhile.
            let _ = line.send(read.map(|_| text));
        })?;
        let mut server =
            Self { child, pulsar: String::new(), http: String::new(), ready_after: Duration::ZERO };
        let text = lines.recv_timeout(LIMIT).context("no ready line in time")??;
        server.ready_after = begun.elapsed();
        let words: Vec<&str> = text.split_whitespace().collect();
        let ["ready:", pulsar, http, "data", dir] = words.as_slice() else {
            bail!("no ready line: {text:?}")
        };
        ensure!(Path::new(dir) == data_dir, "the ready line names {dir}");
        (server.pulsar, server.http) = ((*pulsar).to_owned(), (*http).to_owned());
        Ok(server)
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// The system refuses.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM; answers how it ended and how long that took.
    ///
    /// # Errors
    /// It did not end in time.
    pub fn terminate(mut self) -> Result<(ExitStatus, Duration)> {
        let begun = Instant::now();
        let sent = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        ensure!(sent.success(), "no signal could be sent");
        let status = wait(&mut self.child)?;
        Ok((status, begun.elapsed()))
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// An HTTP request; answers status and body.
    ///
    /// # Errors
    /// The connection fails or the answer is no HTTP.
    pub fn request(&self, method: &str, path: &str) -> Result<(u16, String)> {
        self.request_with(method, path, "")
    }

    /// The stats of a topic of `public/default`.
    ///
    /// # Errors
    /// They cannot be had.
    pub fn stats(&self, topic: &str) -> Result<serde_json::Value> {
        let (status, body) =
            self.request("GET", &format!("/admin/v2/persistent/public/default/{topic}/stats"))?;
        ensure!(status == 200, "{status} {body}");
        Ok(serde_json::from_str(&body)?)
    }

    /// An HTTP request with a JSON body; answers status and body.
    ///
    /// # Errors
    /// The connection fails or the answer is no HTTP.
    pub fn request_with(&self, method: &str, path: &str, body: &str) -> Result<(u16, String)> {
        let host = self.http.trim_start_matches("http://");
        let mut stream = TcpStream::connect(host)?;
        stream.set_read_timeout(Some(LIMIT))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).context("no status line")?.parse()?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        Ok((status, body.to_owned()))
    }

    /// Runs `geminga perf` against the server; answers its JSON report.
    ///
    /// # Errors
    /// It fails or its report is no JSON.
    pub fn perf(&self, args: &[&str]) -> Result<serde_json::Value> {
        let mut command = Command::new(binary()?);
        command.arg("perf").args(args).args(["--url", &self.pulsar, "--json"]);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "perf {args:?} failed: {said}");
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

impl Drop for Standalone {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(child: &mut Child) -> Result<ExitStatus> {
    let until = Instant::now() + LIMIT;
    while Instant::now() < until {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill()?;
    child.wait()?;
    bail!("the process did not end in {LIMIT:?}")
}

/// Runs a command to its end; answers whether it succeeded, its standard output and its standard error.
///
/// # Errors
/// It cannot be started.
pub fn run(args: &[&str]) -> Result<(bool, String, String)> {
    let output = Command::new(binary()?).args(args).stdin(Stdio::null()).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.success(), text(&output.stdout), text(&output.stderr)))
}

/// Starts a server that must refuse to run; answers what it said on standard error.
///
/// # Errors
/// It runs, or ends as if all were well, or said it was ready.
pub fn refused(data_dir: &Path, more: &[&str]) -> Result<String> {
    must_refuse(command(data_dir, more)?)
}

/// Starts a `geminga` of any role that must refuse to run; answers what it said on standard error.
///
/// # Errors
/// It runs, or ends as if all were well, or said it was ready.
pub fn refused_as(role: &str, data_dir: &Path, more: &[&str]) -> Result<String> {
    let mut command = Command::new(binary()?);
    command.args([role, "--log", "warn", "--data-dir"]).arg(data_dir).args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    must_refuse(command)
}

fn must_refuse(mut command: Command) -> Result<String> {
    let mut child = command.spawn()?;
    let status = wait(&mut child)?;
    let Output { stdout, stderr, .. } = child.wait_with_output()?;
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    ensure!(!status.success(), "it ended with success: {stdout}{stderr}");
    ensure!(!stdout.contains("ready:"), "it said it was ready: {stdout}");
    Ok(stderr.into_owned())
}
