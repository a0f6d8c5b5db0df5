//! The consuming run: opens the consumers, sends acks in groups, reports.

use crate::args::ConsumeArgs;
use crate::client::{Consumer, Pool, Subscription, expand_partitions};
use crate::report::{Recorder, Watch};
use crate::stamp::WallClock;
use anyhow::Result;
use geminga_common::clock::SystemClock;
use geminga_common::tasks::{OnFailure, TaskGroup};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Longest wait of an ack for company.
const ACK_EVERY: Duration = Duration::from_millis(100);

/// Runs `perf consume`.
pub(crate) async fn run(args: ConsumeArgs) -> Result<()> {
    args.validate()?;
    let clock = WallClock::calibrate(SystemClock::shared());
    let tasks = TaskGroup::new();
    let recorder = Arc::new(Recorder::new());
    let (failure, mut failures) = mpsc::channel(1);
    let mut pool = Pool::new(&args.common.url, args.common.connections, tasks.clone(), failure)?;
    let consumers = Arc::new(open_consumers(&args, &mut pool, &recorder, &clock).await?);
    tasks.spawn("perf-acks", OnFailure::StopProcess, {
        let consumers = consumers.clone();
        async move {
            let mut tick = tokio::time::interval(ACK_EVERY);
            loop {
                tick.tick().await;
                consumers.iter().for_each(|consumer| consumer.send_acks());
            }
        }
    });
    let watch = Watch { common: &args.common, recorder: &recorder, clock: &clock };
    let enough = async {
        match args.common.messages() {
            Some(n) => recorder.reached(n).await,
            None => std::future::pending().await,
        }
    };
    let outcome = watch.run(&mut failures, || {}, enough).await;
    let report = recorder.report("consume", &args.common.url, recorder.span());
    report.print(args.common.json)?;
    outcome?;
    for consumer in consumers.iter() {
        consumer.close().await?;
    }
    Ok(())
}

async fn open_consumers(
    args: &ConsumeArgs,
    pool: &mut Pool,
    recorder: &Arc<Recorder>,
    clock: &WallClock,
) -> Result<Vec<Arc<Consumer>>> {
    let mut consumers = Vec::new();
    for topic in args.common.topic_names() {
        for partition in expand_partitions(pool, &topic).await? {
            for nth in 0..args.subscriptions {
                let name = if args.subscriptions == 1 {
                    args.subscription.clone()
                } else {
                    format!("{}-{nth}", args.subscription)
                };
                let subscription = Subscription {
                    name,
                    kind: args.subscription_type,
                    initial: args.initial_position,
                    receiver_queue: args.receiver_queue,
                };
                for _ in 0..args.consumers {
                    let consumer =
                        Consumer::open(pool, &partition, &subscription, recorder.clone(), clock.clone());
                    consumers.push(consumer.await?);
                }
            }
        }
    }
    Ok(consumers)
}
