//! How fast a store is asked. It is asked as fast as it is needed until it answers that it is too much (429, 503); then at a rate that
//! falls by a third for each second with such an answer and rises steadily in between, until nothing has been refused for a
//! minute. One rate for all requests of a process to a store: readers, uploads, removals and their repetitions. When the store
//! says for how long it wants to be left alone (`Retry-After`), it is for so long, up to [`REST_MAX`].
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
use std::time::{Duration, SystemTime};

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

/// Longest that nothing is sent because the store wants to be left alone. What it asks beyond that is not granted: a store that says an
/// hour would stop readers for an hour by one header, while what has waited for its turn so long has not expired yet.
const REST_MAX: Duration = Duration::from_secs(20);

/// What holding back has come to.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Throttled {
    /// Answers that asked for fewer requests.
    pub refused: u64,
    /// Requests that were held back.
    pub held: u64,
    /// How long they were, in microseconds together.
    pub held_us: u64,
    /// Answers that said for how long the store wants to be left alone.
    pub rests: u64,
    /// Requests a second that are sent at most; `None` while there is no limit.
    pub rate: Option<f64>,
}

/// The rate of one store.
#[derive(Debug, Default)]
pub(super) struct Pace {
    rate: Option<f64>,
    /// When the next request may go.
    next: Mono,
    /// Until when the store wants to be left alone.
    rest: Mono,
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
        let at = self.next.max(self.rest).max(now);
        self.next = at + Duration::from_secs_f64(1.0 / rate);
        let wait = at.saturating_sub(now);
        if !wait.is_zero() {
            self.told.held += 1;
            self.told.held_us += wait.as_micros() as u64;
        }
        wait
    }

    /// The store has answered that it is too much, and perhaps for how long.
    pub(super) fn refused(&mut self, now: Mono, after: Option<Duration>) {
        self.told.refused += 1;
        if let Some(after) = after.filter(|after| !after.is_zero()) {
            self.told.rests += 1;
            self.rest = self.rest.max(now + after.min(REST_MAX));
        }
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
                let after = answer.headers().get("retry-after");
                let after = after.and_then(|says| retry_after(says.as_bytes(), clock.wall_ms()));
                pace.lock().refused(clock.mono(), after);
            }
            Ok(answer)
        })
    }
}

/// What `Retry-After` says, in seconds or as a date; nothing where it is neither.
fn retry_after(says: &[u8], now_ms: u64) -> Option<Duration> {
    let text = std::str::from_utf8(says).ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(at.saturating_sub(Duration::from_millis(now_ms)))
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
        pace.refused(at(1000), None);
        pace.refused(at(1001), None);
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
            pace.refused(at(now), None);
            asked += 1;
        }
        assert!((200..500).contains(&asked), "{asked} requests in a minute");
    }

    #[test]
    fn a_store_is_left_alone_for_as_long_as_it_says_and_no_longer_than_the_bound() {
        let seconds = Duration::from_secs;
        for (says, waits) in [(seconds(3), seconds(3)), (seconds(3_600), REST_MAX), (seconds(0), seconds(0))]
        {
            let mut pace = Pace::default();
            assert!((0..100).all(|_| pace.turn(at(0)).is_zero()));
            pace.refused(at(0), Some(says));
            let first = pace.turn(at(0));
            assert!((waits..waits + seconds(1)).contains(&first), "{says:?}: {first:?}");
            assert!(pace.turn(at(0)) > first, "they do not go all at once behind it");
            assert_eq!(pace.told(at(0)).rests, u64::from(!says.is_zero()));
        }
        let mut pace = Pace::default();
        pace.refused(at(0), Some(seconds(5)));
        pace.refused(at(100), Some(seconds(1)));
        assert!(pace.turn(at(200)) >= seconds(4), "a later answer does not shorten it");
        assert!(pace.turn(at(6_000)) < seconds(1), "it is over");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let said = |text: &str| retry_after(text.as_bytes(), 784_111_777_000);
        assert_eq!(said("120"), Some(Duration::from_secs(120)));
        assert_eq!(said("Sun, 06 Nov 1994 08:49:47 GMT"), Some(Duration::from_secs(10)));
        assert_eq!(said("Sun, 06 Nov 1994 08:49:07 GMT"), Some(Duration::ZERO), "it is past");
        assert_eq!((said("soon"), said("-1"), said("")), (None, None, None));
    }

    /// Refuses everything, and says for how long.
    #[derive(Debug)]
    struct Refuses;

    impl HttpService for Refuses {
        fn call<'a, 'b>(
            &'a self,
            _: HttpRequest,
        ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            let body = object_store::client::HttpResponseBody::from(bytes::Bytes::new());
            let mut answer = HttpResponse::new(body);
            *answer.status_mut() = 503.try_into().unwrap();
            answer.headers_mut().insert("retry-after", "7".parse().unwrap());
            Box::pin(std::future::ready(Ok(answer)))
        }
    }

    #[tokio::test]
    async fn what_the_store_says_holds_for_the_next_request() {
        let clock = Arc::new(geminga_common::clock::ManualClock::at_wall_ms(0));
        let to = Arc::new(object_store::client::ReqwestConnector::default());
        let paced = Paced { to, pace: Arc::default(), clock };
        let service = Service { inner: HttpClient::new(Refuses), paced };
        service.call(HttpRequest::new(Vec::new().into())).await.unwrap();
        let wait = service.paced.pace.lock().turn(Mono::ZERO);
        assert!(wait >= Duration::from_secs(7), "{wait:?}");
        assert_eq!(service.paced.told().rests, 1);
    }
}
