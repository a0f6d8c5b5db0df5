//! The command line of `geminga perf`. Pure data and its checks; every option acts or is refused.

use anyhow::{Result, ensure};
use std::time::Duration;

/// Measures a Pulsar-protocol server under load.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The two kinds of load.
#[derive(clap::Subcommand, Clone, Debug)]
pub enum Command {
    /// Publish messages; latency runs from the intended send time to the receipt.
    Produce(ProduceArgs),
    /// Consume messages; latency runs from the intended send time to arrival.
    Consume(ConsumeArgs),
}

/// What both loads need.
#[derive(clap::Args, Clone, Debug)]
pub struct CommonArgs {
    /// Service URL.
    #[arg(long, default_value = "pulsar://127.0.0.1:6650")]
    pub url: String,
    /// Topic; with several topics, the prefix of their names.
    #[arg(long, default_value = "persistent://public/default/perf")]
    pub topic: String,
    /// Number of topics: `TOPIC-0`, `TOPIC-1` and so on when more than one. A partitioned topic counts once and is used whole.
    #[arg(long, default_value_t = 1)]
    pub topics: usize,
    /// Connections per broker.
    #[arg(long, default_value_t = 1)]
    pub connections: usize,
    /// Seconds to measure; 0 for no end.
    #[arg(long, default_value_t = 0.0)]
    pub duration: f64,
    /// Messages to measure; 0 for no end.
    #[arg(long, default_value_t = 0)]
    pub messages: u64,
    /// Seconds of load before measuring starts.
    #[arg(long, default_value_t = 0.0)]
    pub warmup: f64,
    /// Print the report as one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// Options of `perf produce`.
#[derive(clap::Args, Clone, Debug)]
pub struct ProduceArgs {
    /// Options of both loads.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Messages per second over all producers; 0 for as fast as receipts allow.
    #[arg(long, default_value_t = 1000.0)]
    pub rate: f64,
    /// Payload size in bytes. From 16 bytes on the payload carries its intended send time.
    #[arg(long, default_value_t = 1024)]
    pub size: usize,
    /// Producers per topic or partition.
    #[arg(long, default_value_t = 1)]
    pub producers: usize,
    /// Gather messages into batches (the default).
    #[arg(long, overrides_with = "no_batch")]
    pub batch: bool,
    /// Send each message as an entry of its own.
    #[arg(long, overrides_with = "batch")]
    pub no_batch: bool,
    /// Most messages in a batch.
    #[arg(long, default_value_t = 1000)]
    pub batch_messages: u32,
    /// Most payload bytes in a batch.
    #[arg(long, default_value_t = 131_072)]
    pub batch_bytes: usize,
    /// Longest time the first message of a batch waits for others, in milliseconds.
    #[arg(long, default_value_t = 1.0)]
    pub batch_delay_ms: f64,
    /// Messages that one producer may have without receipt.
    #[arg(long, default_value_t = 1000)]
    pub max_pending: usize,
}

/// Subscription types, by their Pulsar names.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SubscriptionType {
    /// One consumer.
    Exclusive,
    /// One active consumer, others stand by.
    Failover,
    /// Messages spread over the consumers.
    Shared,
    /// Messages spread by key.
    #[value(name = "key_shared", alias = "key-shared")]
    KeyShared,
}

/// Where a new subscription starts.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum InitialPosition {
    /// With the next message.
    Latest,
    /// With the oldest message there is.
    Earliest,
}

/// Options of `perf consume`.
#[derive(clap::Args, Clone, Debug)]
pub struct ConsumeArgs {
    /// Options of both loads.
    #[command(flatten)]
    pub common: CommonArgs,
    /// Subscription; with several, the prefix of their names.
    #[arg(long, default_value = "perf")]
    pub subscription: String,
    /// Number of subscriptions on each topic.
    #[arg(long, default_value_t = 1)]
    pub subscriptions: usize,
    /// Type of the subscriptions.
    #[arg(long, value_enum, ignore_case = true, default_value = "exclusive")]
    pub subscription_type: SubscriptionType,
    /// Consumers on each subscription of each topic or partition.
    #[arg(long, default_value_t = 1)]
    pub consumers: usize,
    /// Where new subscriptions start.
    #[arg(long, value_enum, default_value = "latest")]
    pub initial_position: InitialPosition,
    /// Messages a consumer lets the broker send ahead.
    #[arg(long, default_value_t = 1000)]
    pub receiver_queue: u32,
}

impl CommonArgs {
    /// Checks what the parser cannot.
    pub(crate) fn validate(&self) -> Result<()> {
        ensure!(self.topics > 0, "--topics must be at least 1");
        ensure!(self.connections > 0, "--connections must be at least 1");
        ensure!(is_span(self.duration), "--duration must be a number of seconds, 0 or more");
        ensure!(is_span(self.warmup), "--warmup must be a number of seconds, 0 or more");
        Ok(())
    }

    /// Full names of the topics.
    pub(crate) fn topic_names(&self) -> Vec<String> {
        let base = if self.topic.contains("://") {
            self.topic.clone()
        } else if self.topic.contains('/') {
            format!("persistent://{}", self.topic)
        } else {
            format!("persistent://public/default/{}", self.topic)
        };
        if self.topics == 1 { vec![base] } else { (0..self.topics).map(|i| format!("{base}-{i}")).collect() }
    }

    /// Time of load before measuring.
    pub(crate) fn warmup(&self) -> Duration {
        Duration::from_secs_f64(self.warmup)
    }

    /// Time to measure, if bounded.
    pub(crate) fn duration(&self) -> Option<Duration> {
        (self.duration > 0.0).then(|| Duration::from_secs_f64(self.duration))
    }

    /// Messages to measure, if bounded.
    pub(crate) fn messages(&self) -> Option<u64> {
        (self.messages > 0).then_some(self.messages)
    }
}

impl ProduceArgs {
    /// Checks what the parser cannot.
    pub(crate) fn validate(&self) -> Result<()> {
        self.common.validate()?;
        ensure!(
            self.rate >= 0.0 && self.rate <= 1e9,
            "--rate must be between 0 and 10^9 messages per second"
        );
        ensure!(self.producers > 0, "--producers must be at least 1");
        ensure!(self.max_pending > 0, "--max-pending must be at least 1");
        ensure!(self.batch_messages > 0 && self.batch_bytes > 0, "a batch must hold at least one message");
        ensure!(is_span(self.batch_delay_ms), "--batch-delay-ms must be 0 or more");
        Ok(())
    }
}

impl ConsumeArgs {
    /// Checks what the parser cannot.
    pub(crate) fn validate(&self) -> Result<()> {
        self.common.validate()?;
        ensure!(self.subscriptions > 0 && self.consumers > 0, "there must be a subscription and a consumer");
        ensure!(self.receiver_queue > 0, "--receiver-queue must be at least 1");
        let alone = self.subscription_type == SubscriptionType::Exclusive;
        ensure!(!alone || self.consumers == 1, "an exclusive subscription takes one consumer");
        Ok(())
    }
}

/// A length of time a `Duration` can hold, with a year as the most that makes sense.
fn is_span(value: f64) -> bool {
    (0.0..=31_536_000_000.0).contains(&value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn produce(line: &str) -> ProduceArgs {
        let cli = Cli::try_parse_from(line.split(' ')).expect("the line parses");
        let Command::Produce(args) = cli.args.command else { panic!("not produce") };
        args
    }

    #[test]
    fn short_topic_names_are_completed() {
        assert_eq!(produce("x produce --topic a").common.topic_names(), ["persistent://public/default/a"]);
        let several = produce("x produce --topic t/n/a --topics 2").common.topic_names();
        assert_eq!(several, ["persistent://t/n/a-0", "persistent://t/n/a-1"]);
    }

    #[test]
    fn the_later_of_batch_and_no_batch_wins() {
        assert!(produce("x produce --batch --no-batch").no_batch);
        assert!(!produce("x produce --no-batch --batch").no_batch);
    }

    #[test]
    fn nonsense_is_refused() {
        for line in
            ["--topics 0", "--producers 0", "--max-pending 0", "--rate -1", "--duration NaN", "--warmup=-3"]
        {
            let line = format!("x produce {line}");
            let parsed = Cli::try_parse_from(line.split(' '));
            let refused = match parsed.map(|cli| cli.args.command) {
                Ok(Command::Produce(args)) => args.validate().is_err(),
                Ok(Command::Consume(_)) => false,
                Err(_) => true,
            };
            assert!(refused, "{line}");
        }
    }
}
