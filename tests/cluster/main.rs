//! A real cluster of processes: etcd, three bookies, a broker. What was acknowledged is read back byte for byte and in order,
//! whoever was killed or paused meanwhile.
#![allow(clippy::disallowed_methods, clippy::print_stdout)] // real files, processes and clocks; figures of the run

mod bare;
mod repair;

use anyhow::{Context as _, Result, bail, ensure};
use geminga_common::metadata::etcd::local;
use geminga_tests::client::{Client, Received};
use geminga_tests::process::binary;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(20);
const TOPIC: &str = "persistent://public/default/kept";

/// A cluster in a directory of its own. Dropping it ends its processes.
struct Cluster {
    dir: tempfile::TempDir,
    etcd: PathBuf,
    pulsar: String,
    http: String,
    settings: Vec<(String, String)>,
}

fn run(args: &[&str], dir: &Path) -> Result<(bool, String)> {
    run_with(&[], args, dir)
}

fn run_with(settings: &[(String, String)], args: &[&str], dir: &Path) -> Result<(bool, String)> {
    let environment = settings.iter().map(|(key, value)| (key, value));
    let output = Command::new(binary()?).args(args).arg("--dir").arg(dir).envs(environment).output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

impl Cluster {
    /// `None` when there is no etcd, which is said then.
    fn up(what: &str) -> Result<Option<Self>> {
        Self::up_with(what, &[])
    }

    /// With settings in the environment of its processes.
    fn up_with(what: &str, settings: &[(&str, &str)]) -> Result<Option<Self>> {
        let Some(etcd) = local::find(what, None) else { return Ok(None) };
        let dir = tempfile::tempdir()?;
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut cluster = Self { dir, etcd, pulsar: String::new(), http: String::new(), settings };
        cluster.start()?;
        Ok(Some(cluster))
    }

    /// Only these of its processes.
    fn up_only(what: &str, settings: &[(&str, &str)], names: &[&str]) -> Result<Option<Self>> {
        let Some(etcd) = local::find(what, None) else { return Ok(None) };
        let dir = tempfile::tempdir()?;
        let settings = settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let cluster = Self { dir, etcd, pulsar: String::new(), http: String::new(), settings };
        cluster.start_only(names)?;
        Ok(Some(cluster))
    }

    /// Starts those that do not run of these.
    fn start_only(&self, names: &[&str]) -> Result<()> {
        let etcd = self.etcd.to_str().context("the path is text")?;
        let args = ["cluster", "up", "--pulsar-port", "0", "--http-port", "0", "--etcd", etcd];
        let (good, said) = run_with(&self.settings, &[&args[..], names].concat(), self.dir.path())?;
        ensure!(good, "up failed: {said}\n{}", self.logs());
        Ok(())
    }

    /// Starts what does not run.
    fn start(&mut self) -> Result<()> {
        let etcd = self.etcd.to_str().context("the path is text")?;
        let args = ["cluster", "up", "--pulsar-port", "0", "--http-port", "0", "--etcd", etcd];
        let (good, said) = run_with(&self.settings, &args, self.dir.path())?;
        ensure!(good, "up failed: {said}\n{}", self.logs());
        let ready = said.lines().find_map(|line| line.strip_prefix("ready: ")).context("no ready line")?;
        let words: Vec<&str> = ready.split_whitespace().collect();
        (self.pulsar, self.http) = (words[0].to_owned(), words[1].to_owned());
        Ok(())
    }

    fn status(&self) -> Result<(bool, String)> {
        run(&["cluster", "status"], self.dir.path())
    }

    fn logs(&self) -> String {
        run(&["cluster", "logs", "--lines", "30"], self.dir.path())
            .map_or_else(|e| e.to_string(), |(_, said)| said)
    }

    fn process(&self, name: &str) -> Result<String> {
        let (_, said) = self.status()?;
        let line = said.lines().find(|line| line.starts_with(name)).context("no such process")?;
        line.split_whitespace().nth(3).map(ToOwned::to_owned).context("no process id")
    }

    /// Where a process listens.
    fn address(&self, name: &str) -> Result<String> {
        let (_, said) = self.status()?;
        let line = said.lines().find(|line| line.starts_with(name)).context("no such process")?;
        line.split_whitespace().nth(4).map(|at| format!("http://{at}")).context("no address")
    }

    fn signal(&self, name: &str, signal: &str) -> Result<()> {
        let id = self.process(name)?;
        ensure!(Command::new("kill").args([signal, &id]).status()?.success(), "kill {signal} {id}");
        if signal == "-STOP" {
            // A process that had no core when it was signalled stops when it gets one.
            again(|| {
                let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))?;
                ensure!(stat.contains(") T "), "{id} runs on");
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let ended = run(&["cluster", "down"], self.dir.path());
        if std::thread::panicking() {
            let _stderr = std::io::Write::write_all(&mut std::io::stderr(), format!("{ended:?}").as_bytes());
        }
    }
}

fn payload(who: &str, n: u64) -> Vec<u8> {
    format!("{who} {n} {}", "x".repeat((n % 700) as usize)).into_bytes()
}

/// Tries until it works: topics are opened anew after a crash.
fn again<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match call() {
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
            done => return done,
        }
    }
}

/// Publishes numbers `range` as `who`, all at once; every one must be acknowledged. Nothing is sent twice: only the producer is
/// tried again.
fn publish(url: &str, who: &str, range: std::ops::Range<u64>) -> Result<()> {
    let (mut client, producer) = again(|| {
        let mut client = Client::connect(url, PATIENCE)?;
        let producer = client.producer(TOPIC, who)?;
        Ok((client, producer))
    })?;
    for n in range.clone() {
        client.write(producer, who, n, &payload(who, n))?;
    }
    for n in range {
        let (sequence, ..) = client.receipt()?.context("no receipt in time")?;
        ensure!(sequence == n, "receipt {sequence} instead of {n}");
    }
    Ok(())
}

/// Subscribes and reads nothing: what nobody subscribes to need not be kept.
fn keep(url: &str) -> Result<()> {
    read(url, "keeper", 0).map(drop)
}

fn read(url: &str, subscription: &str, count: usize) -> Result<Vec<Received>> {
    again(|| {
        let at = Client::connect(url, PATIENCE)?.lookup(TOPIC)?;
        Client::connect(&at, Duration::from_secs(2))?.read(
            TOPIC,
            subscription,
            count,
            Duration::from_secs(60),
        )
    })
}

#[test]
fn a_cluster_survives_the_death_of_a_bookie_and_of_its_broker() -> Result<()> {
    let Some(mut cluster) = Cluster::up("a cluster of processes")? else { return Ok(()) };
    let (all_run, said) = cluster.status()?;
    ensure!(all_run && said.lines().count() == 5, "{said}");
    keep(&cluster.pulsar)?;
    publish(&cluster.pulsar, "a", 0..500).with_context(|| cluster.logs())?;

    cluster.signal("bookie-1", "-KILL")?;
    publish(&cluster.pulsar, "a", 500..1000)
        .with_context(|| format!("one bookie down\n{}", cluster.logs()))?;
    let (all_run, said) = cluster.status()?;
    ensure!(!all_run && said.contains("down"), "{said}");

    cluster.signal("broker", "-KILL")?;
    cluster.start()?;
    publish(&cluster.pulsar, "b", 0..500).with_context(|| cluster.logs())?;
    ensure!(cluster.status()?.0, "up starts what was killed");

    let all = read(&cluster.pulsar, "all", 1500).with_context(|| cluster.logs())?;
    let expected = (0..1000).map(|n| payload("a", n)).chain((0..500).map(|n| payload("b", n)));
    for (n, (got, wanted)) in all.iter().zip(expected).enumerate() {
        ensure!(got.payload == wanted, "message {n} is {:?}", String::from_utf8_lossy(&got.payload[..10]));
    }
    ensure!(all.windows(2).all(|pair| pair[0].position < pair[1].position), "positions go back");

    // A paused process is not started a second time, and one can be ended by name.
    cluster.signal("bookie-2", "-STOP")?;
    let refused = cluster.start_only(&["bookie-2"]).map_err(|error| error.to_string());
    ensure!(refused.as_ref().is_err_and(|said| said.contains("is paused")), "{refused:?}");
    let (good, said) = run(&["cluster", "down", "bookie-2"], cluster.dir.path())?;
    ensure!(good && said.contains("bookie-2 ended") && !said.contains("broker"), "{said}");
    let refused = cluster.start_only(&["bookie-9"]).map_err(|error| error.to_string());
    ensure!(refused.as_ref().is_err_and(|said| said.contains("there is no `bookie-9`")), "{refused:?}");

    let (good, said) = run(&["cluster", "down"], cluster.dir.path())?;
    ensure!(good && said.contains("all is down"), "{said}");
    cluster.start()?;
    let again_all = read(&cluster.pulsar, "once more", 1500)?;
    ensure!(again_all == all, "a restart of everything changed something");
    Ok(())
}

/// A second broker of the cluster, with a lease of three seconds.
struct Second {
    child: Child,
    url: String,
}

impl Second {
    fn start(cluster: &Cluster, lease_ms: &str) -> Result<Self> {
        let (_, said) = cluster.status()?;
        let etcd = said.lines().find(|line| line.starts_with("etcd")).context("no etcd")?;
        let port = etcd.rsplit(':').next().context("no port")?;
        let mut child = Command::new(binary()?)
            .args(["broker", "--cluster", "local", "--pulsar-port", "0", "--http-port", "0", "--log", "warn"])
            .args(["--metadata", &format!("etcd:http://127.0.0.1:{port}")])
            .env("GEMINGA_BROKER_LEASE_MS", lease_ms)
            .env("GEMINGA_BROKER_METADATA_CALL_TIMEOUT_MS", "1000")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().context("standard output is piped")?;
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line)?;
        let url = line.split_whitespace().nth(1).with_context(|| format!("no ready line: {line:?}"))?;
        Ok(Self { url: url.to_owned(), child })
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let id = self.child.id().to_string();
        ensure!(Command::new("kill").args([signal, &id]).status()?.success(), "kill {signal}");
        Ok(())
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        let _gone_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Reads receipts until the broker says no more; answers how many came.
fn drain_receipts(client: &mut Client) -> u64 {
    let mut last = 0;
    while let Ok(Some((sequence, ..))) = client.receipt() {
        last = sequence + 1;
    }
    last
}

#[test]
fn a_broker_that_slept_past_its_lease_acknowledges_nothing_more() -> Result<()> {
    let Some(cluster) = Cluster::up("two brokers")? else { return Ok(()) };
    let sleeper = Second::start(&cluster, "3000")?;
    // The first lookup makes the sleeper the owner; the other broker names it.
    let owner = again(|| Client::connect(&sleeper.url, PATIENCE)?.lookup(TOPIC))?;
    ensure!(owner == sleeper.url, "{owner} serves, not {}", sleeper.url);
    let told = Client::connect(&cluster.pulsar, PATIENCE)?.lookup(TOPIC)?;
    ensure!(told == sleeper.url, "the other broker names {told}");
    let elsewhere = Client::connect(&cluster.pulsar, PATIENCE)?.producer(TOPIC, "wrong door");
    ensure!(elsewhere.is_err(), "a broker served a topic that is another's");

    keep(&sleeper.url)?;
    let mut old = Client::connect(&sleeper.url, Duration::from_secs(5))?;
    let producer = old.producer(TOPIC, "old")?;
    for n in 0..200 {
        old.write(producer, "old", n, &payload("old", n))?;
    }
    for n in 0..200 {
        ensure!(old.receipt()?.context("no receipt")?.0 == n, "receipts out of order");
    }
    sleeper.signal("-STOP")?;
    // Written while it sleeps: they wait in its socket until it wakes.
    for n in 200..400 {
        old.write(producer, "old", n, &payload("old", n))?;
    }
    let begun = Instant::now();
    again(|| {
        let at = Client::connect(&cluster.pulsar, PATIENCE)?.lookup(TOPIC)?;
        if at == cluster.pulsar { Ok(()) } else { bail!("still at {at}") }
    })?;
    let took = begun.elapsed();
    publish(&cluster.pulsar, "new", 0..300).with_context(|| cluster.logs())?;
    sleeper.signal("-CONT")?;
    publish(&cluster.pulsar, "new", 300..400).with_context(|| cluster.logs())?;
    let acked_by_sleeper = drain_receipts(&mut old);
    ensure!(acked_by_sleeper <= 200, "{acked_by_sleeper} acknowledged by a broker that owns nothing");

    let all = read(&cluster.pulsar, "all", 600)?;
    let expected = (0..200).map(|n| payload("old", n)).chain((0..400).map(|n| payload("new", n)));
    for (n, (got, wanted)) in all.iter().zip(expected).enumerate() {
        ensure!(got.payload == wanted, "message {n} is {:?}", String::from_utf8_lossy(&got.payload[..12]));
    }
    ensure!(all.windows(2).all(|pair| pair[0].position < pair[1].position), "positions go back");
    ensure!(took < Duration::from_secs(30), "the topic was away for {took:?}");
    Ok(())
}

#[test]
fn rest_sends_to_the_broker_that_serves_the_topic() -> Result<()> {
    let Some(cluster) = Cluster::up("REST over two brokers")? else { return Ok(()) };
    let other = Second::start(&cluster, "10000")?;
    publish(&other.url, "a", 0..1)?;
    let host = cluster.http.trim_start_matches("http://");
    let path = "/admin/v2/persistent/public/default/kept/stats?getPreciseBacklog=true";
    let mut stream = std::net::TcpStream::connect(host)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    std::io::Write::write_all(&mut stream, request.as_bytes())?;
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 307"), "{answer}");
    let location = answer.lines().find(|line| line.to_lowercase().starts_with("location:"));
    let location = location.context("no location")?;
    ensure!(location.ends_with(path) && !location.contains(host), "{location}");
    Ok(())
}
