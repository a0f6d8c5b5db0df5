//! The processes of a cluster: started apart from the command that starts them, recognised by id *and* start time, ended politely
//! first.

use super::state::{Cluster, Kind, Process, Running, log};
use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(20);

/// Whether a process runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    Running,
    /// Paused by a signal.
    Stopped,
    /// Killed, or at its end, while some of its threads are not gone: its ports and its directory are still taken.
    Ending,
    Down,
}

/// The etcd binary, or what to do about its absence.
pub(super) fn find_etcd(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        anyhow::ensure!(path.is_file(), "there is no etcd at {}", path.display());
        return Ok(path.canonicalize()?);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join("etcd")).find(|path| path.is_file());
    found.context(
        "etcd is not on PATH. Debian and Ubuntu have it as `apt-get install etcd-server`; releases are at \
         https://github.com/etcd-io/etcd/releases. Or pass --etcd PATH (3.4 or above)",
    )
}

/// State letter, threads that are not gone, and start time of a process, as the system tells them.
fn look(id: u32) -> Option<(char, u32, u64)> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name, in brackets, may hold anything; fields count from behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let threads = fields.nth(16)?.parse().ok()?;
    Some((state, threads, fields.nth(1)?.parse().ok()?))
}

pub(super) fn standing(process: &Process) -> Standing {
    match process.running.and_then(|running| Some((running, look(running.id)?))) {
        Some((running, (state, threads, started))) if running.started == started => match state {
            // The state is that of its first thread. Others may wait for the disk, or for a processor at their low priority, and
            // what the process has open is open as long as they are there.
            'Z' | 'X' if threads > 1 => Standing::Ending,
            'Z' | 'X' => Standing::Down,
            'T' | 't' => Standing::Stopped,
            _ => Standing::Running,
        },
        _ => Standing::Down,
    }
}

fn command(dir: &Path, cluster: &Cluster, process: &Process, etcd: &Path) -> Result<Command> {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let data = dir.join(&process.name);
    let metadata = format!("etcd:{}", url(cluster.of(Kind::Etcd).port));
    let own = std::env::current_exe().context("finding the geminga binary")?;
    let port = process.port.to_string();
    let configured = |command: &mut Command| {
        if let Some(config) = &cluster.config {
            command.arg("--config").arg(config);
        }
    };
    Ok(match process.kind {
        Kind::Etcd => {
            let (clients, peers) = (url(process.port), url(process.second_port));
            let mut command = Command::new(etcd);
            command.args(["--name", "etcd", "--log-level", "warn", "--data-dir"]).arg(data);
            command.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
            command.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
            command.args(["--initial-cluster", &format!("etcd={peers}")]);
            // Old revisions serve nobody for longer than this.
            command.args(["--auto-compaction-mode", "periodic", "--auto-compaction-retention", "10m"]);
            command
        }
        Kind::Bookie => {
            let mut command = Command::new(own);
            command.args(["bookie", "--id", &process.name, "--cluster", CLUSTER, "--metadata", &metadata]);
            command.args(["--port", &port, "--data-dir"]).arg(data);
            configured(&mut command);
            command
        }
        Kind::Broker => {
            let mut command = Command::new(own);
            let http = process.second_port.to_string();
            command.args(["broker", "--cluster", CLUSTER, "--metadata", &metadata]);
            command.args(["--pulsar-port", &port, "--http-port", &http]);
            let copies = cluster.bookies().min(3);
            let acks = (copies / 2 + 1).min(copies);
            command.args(["--quorum", &format!("{copies}/{copies}/{acks}")]);
            configured(&mut command);
            command
        }
    })
}

/// Name of the cluster in metadata.
const CLUSTER: &str = "local";

/// Starts a process of its own session of signals, logging to its file.
pub(super) fn start(dir: &Path, cluster: &Cluster, n: usize, etcd: &Path) -> Result<Running> {
    let process = &cluster.processes[n];
    let path = log(dir, &process.name);
    let out = File::options().create(true).append(true).open(&path);
    let out = out.with_context(|| format!("writing {}", path.display()))?;
    let mut command = command(dir, cluster, process, etcd)?;
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).current_dir(dir).process_group(0);
    let begun = path.metadata()?.len();
    std::fs::write(mark(dir, &process.name), begun.to_string())?;
    let child = command.spawn().with_context(|| format!("starting {}", process.name))?;
    let (_, _, started) = look(child.id()).with_context(|| format!("{} ended at once", process.name))?;
    Ok(Running { id: child.id(), started })
}

/// Remembers where in its log the present start of a process begins.
fn mark(dir: &Path, name: &str) -> PathBuf {
    dir.join("logs").join(format!("{name}.start"))
}

fn said_since_start(dir: &Path, name: &str) -> Result<String> {
    let begun = std::fs::read_to_string(mark(dir, name))?.trim().parse().unwrap_or(0);
    let mut file = File::open(log(dir, name))?;
    file.seek(std::io::SeekFrom::Start(begun))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Waits until a process serves: ours say so, etcd listens.
pub(super) fn wait_ready(dir: &Path, process: &Process, limit: Duration) -> Result<()> {
    let until = Instant::now() + limit;
    loop {
        let ready = match process.kind {
            Kind::Etcd => std::net::TcpStream::connect(("127.0.0.1", process.port)).is_ok(),
            Kind::Bookie | Kind::Broker => {
                said_since_start(dir, &process.name)?.lines().any(|line| line.starts_with("ready:"))
            }
        };
        if ready {
            return Ok(());
        }
        if standing(process) == Standing::Down {
            let said = said_since_start(dir, &process.name)?;
            let last: Vec<&str> = said.lines().rev().take(5).collect();
            anyhow::bail!("it ended: {}", last.into_iter().rev().collect::<Vec<_>>().join(" | "));
        }
        anyhow::ensure!(Instant::now() < until, "it is not ready after {} s", limit.as_secs());
        std::thread::sleep(PAUSE);
    }
}

/// Waits until a process that is ending is gone.
pub(super) fn wait_gone(process: &Process, limit: Duration) -> Result<()> {
    let until = Instant::now() + limit;
    while standing(process) == Standing::Ending {
        let id = process.running.map_or(0, |running| running.id);
        anyhow::ensure!(
            Instant::now() < until,
            "{} was killed and is not gone after {} s: process {id} waits for its disk; try again",
            process.name,
            limit.as_secs()
        );
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Ends a process that runs: asks, waits, kills. Tells how, `None` when it was down.
pub(super) fn end(process: &Process, limit: Duration) -> Result<Option<&'static str>> {
    let standing_now = standing(process);
    let Some(running) = process.running.filter(|_| standing_now != Standing::Down) else { return Ok(None) };
    let id = i32::try_from(running.id).ok().and_then(Pid::from_raw).context("a process id out of range")?;
    let send = |signal| kill_process(id, signal).with_context(|| format!("ending {}", process.name));
    send(Signal::TERM)?;
    if standing_now == Standing::Stopped {
        send(Signal::CONT)?;
    }
    let until = Instant::now() + limit;
    while standing(process) != Standing::Down {
        if Instant::now() >= until {
            send(Signal::KILL)?;
            return Ok(Some("did not end and was killed"));
        }
        std::thread::sleep(PAUSE);
    }
    Ok(Some("ended"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_this_process(started: u64) -> Process {
        let running = Some(Running { id: std::process::id(), started });
        Process { name: "self".into(), kind: Kind::Broker, port: 0, second_port: 0, running }
    }

    #[test]
    fn a_process_id_alone_is_no_process_of_ours() {
        let (_, threads, started) = look(std::process::id()).unwrap();
        assert!(threads >= 1);
        assert_eq!(standing(&of_this_process(started)), Standing::Running);
        let another = of_this_process(started + 1);
        assert_eq!(standing(&another), Standing::Down);
        assert_eq!(end(&another, Duration::ZERO).unwrap(), None, "what only has the same id is not touched");
    }

    /// Seen where a killed broker's other threads waited for a busy processor: its ports were taken still.
    #[test]
    fn a_process_that_has_threads_left_is_not_down() {
        const FIRST_THREAD_ENDS: &str = "import ctypes, threading, time\n\
            threading.Thread(target=time.sleep, args=(5,)).start()\n\
            ctypes.CDLL(None).pthread_exit(None)";
        let mut child = match Command::new("python3").args(["-c", FIRST_THREAD_ENDS]).spawn() {
            Ok(child) => child,
            Err(error) => {
                assert!(std::env::var_os("CI").is_none(), "python3: {error}");
                return; // left out: nothing here ends its first thread alone
            }
        };
        let until = Instant::now() + Duration::from_secs(20);
        let started = loop {
            assert!(Instant::now() < until, "its first thread does not end");
            match look(child.id()) {
                Some(('Z', _, started)) => break started,
                _ => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let running = Some(Running { id: child.id(), started });
        let process = Process { running, ..of_this_process(0) };
        assert_eq!(standing(&process), Standing::Ending);
        assert!(wait_gone(&process, Duration::ZERO).unwrap_err().to_string().contains("not gone"));
        wait_gone(&process, Duration::from_secs(20)).unwrap();
        assert_eq!(standing(&process), Standing::Down);
        child.wait().unwrap();
    }

    #[test]
    fn an_etcd_that_is_not_there_is_named() {
        let error = find_etcd(Some(Path::new("/nowhere/etcd"))).unwrap_err().to_string();
        assert!(error.contains("/nowhere/etcd"), "{error}");
    }
}
