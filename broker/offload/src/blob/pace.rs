//! How fast a store is asked. It is asked as fast as it is needed until it answers that it is too much (429, 503); then at a rate that
//! falls by a third for each second with such an answer and rises steadily in between, until nothing has been refused for a
//! minute. One rate for all requests of a process to a store: readers, uploads, removals and their repetitions.
//!
//! [`Pace`] is pure: time is given. [`Paced`] holds requests back by it, below whatever signs and repeats them; a request whose
//! signature expires while it waits is refused by the store, as it should be.

use geminga_common::clock::{Clock, Mono};
use object_store::ClientOptions;
use object_store::client::{HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService};
use parking_lot::Mutex;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

/// Requests a second that remain when the store refuses them all.
const RATE_MIN: f64 = 4.0;
/// Requests a second that are added for each second.
const RAISE: f64 = 2.0;
/// What remains of the rate when the store refuses.
const CUT: f64 = 0.7;
/// Answers of so long count as one refusal, and tell the rate that was too much.
const SPAN: Duration = Duration::from_secs(1);
/// The rate has no limit any more when nothing was refused for so long.
const FORGIVEN: Duration = Duration::from_secs(60);

/// What holding back has come to.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Throttled {
    /// Answers that asked for fewer requests.
    pub refused: u64,
    /// Requests that were held back.
    pub held: u64,
    /// How long they were, in microseconds together.
    pub held_us: u64,
    /// Requests a second that are sent at most; `None` while there is no limit.
    pub rate: Option<f64>,
}

/// The rate of one store.
#[derive(Debug, Default)]
pub(super) struct Pace {
    rate: Option<f64>,
    /// When the next request may go.
    next: Mono,
    /// When something was refused last, when the rate was cut last and when it rose last.
    refused: Mono,
    cut: Option<Mono>,
    raised: Mono,
    /// Requests of this span and of the one before.
    span: Mono,
    sent: (u64, u64),
    told: Throttled,
}

impl Pace {
    /// How long a request waits that wants to go now.
    pub(super) fn turn(&mut self, now: Mono) -> Duration {
        if now.saturating_sub(self.span) >= SPAN {
            self.sent = (0, if now.saturating_sub(self.span) < SPAN * 2 { self.sent.0 } else { 0 });
            self.span = now;
        }
        self.sent.0 += 1;
        self.rise(now);
        let Some(rate) = self.rate else { return Duration::ZERO };
        let at = self.next.max(now);
        self.next = at + Duration::from_secs_f64(1.0 / rate);
        let wait = at.saturating_sub(now);
        if !wait.is_zero() {
            self.told.held += 1;
            self.told.held_us += wait.as_micros() as u64;
        }
        wait
    }

    /// The store has answered that it is too much.
    pub(super) fn refused(&mut self, now: Mono) {
        self.told.refused += 1;
        self.refused = now;
        if self.cut.is_some_and(|cut| now.saturating_sub(cut) < SPAN) {
            return;
        }
        self.rise(now);
        let seen = self.sent.0.max(self.sent.1) as f64 / SPAN.as_secs_f64();
        self.rate = Some((self.rate.unwrap_or(seen).min(seen) * CUT).max(RATE_MIN));
        (self.cut, self.raised) = (Some(now), now);
    }

    fn rise(&mut self, now: Mono) {
        if let Some(rate) = self.rate {
            let forgiven = now.saturating_sub(self.refused) >= FORGIVEN;
            self.rate = (!forgiven).then(|| rate + RAISE * now.saturating_sub(self.raised).as_secs_f64());
            self.raised = now;
        }
    }

    /// What it has come to by now.
    pub(super) fn told(&mut self, now: Mono) -> Throttled {
        self.rise(now);
        Throttled { rate: self.rate, ..self.told }
    }
}

/// Makes clients that keep one pace together.
#[derive(Clone)]
pub(super) struct Paced {
    to: Arc<dyn HttpConnector>,
    pace: Arc<Mutex<Pace>>,
    clock: Arc<dyn Clock>,
}

struct Service {
    inner: HttpClient,
    paced: Paced,
}

impl Paced {
    /// Paces what goes through clients of another connector.
    pub(super) fn new(clock: Arc<dyn Clock>, to: Arc<dyn HttpConnector>) -> Self {
        Self { to, pace: Arc::default(), clock }
    }

    pub(super) fn told(&self) -> Throttled {
        self.pace.lock().told(self.clock.mono())
    }
}

impl std::fmt::Debug for Paced {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.pace.lock().fmt(f)
    }
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.paced.fmt(f)
    }
}

impl HttpConnector for Paced {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = self.to.connect(options)?;
        Ok(HttpClient::new(Service { inner, paced: self.clone() }))
    }
}

impl HttpService for Service {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move {
            let Paced { pace, clock, .. } = &self.paced;
            let wait = pace.lock().turn(clock.mono());
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            let answer = self.inner.execute(request).await?;
            if matches!(answer.status().as_u16(), 429 | 503) {
                pace.lock().refused(clock.mono());
            }
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Mono {
        Mono::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn nothing_waits_before_something_was_refused() {
        let mut pace = Pace::default();
        assert!((0..1000).all(|ms| pace.turn(at(ms)).is_zero()));
        assert_eq!(pace.told(at(1000)), Throttled::default());
    }

    #[test]
    fn a_refusal_cuts_what_was_sent_and_the_rate_rises_until_it_is_forgiven() {
        let mut pace = Pace::default();
        for ms in (0..1000).step_by(10) {
            pace.turn(at(ms));
        }
        pace.refused(at(1000));
        pace.refused(at(1001));
        assert_eq!(pace.told(at(1001)).rate.map(f64::round), Some(70.0), "one cut for answers of one second");
        let waits: Vec<_> = (0..10).map(|_| pace.turn(at(1001))).collect();
        assert!(waits.windows(2).all(|two| two[0] < two[1]), "{waits:?}");
        assert!((100..150).contains(&waits[9].as_millis()), "{waits:?}");
        assert_eq!(pace.told(at(11_000)).rate.map(f64::round), Some(90.0));
        let told = pace.told(at(61_002));
        assert_eq!((told.rate, told.refused, told.held), (None, 2, 9));
        assert!(pace.turn(at(61_002)).is_zero());
    }

    #[test]
    fn a_store_that_refuses_everything_is_still_asked() {
        let mut pace = Pace::default();
        let (mut now, mut asked) = (0, 0);
        while now < 60_000 {
            now += 1 + pace.turn(at(now)).as_millis() as u64;
            pace.refused(at(now));
            asked += 1;
        }
        assert!((200..500).contains(&asked), "{asked} requests in a minute");
    }
}
