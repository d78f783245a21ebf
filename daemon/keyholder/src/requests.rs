//! What every changing request passes beside its rule: how often somebody may ask, and answers that are given again when the same
//! request comes again.
//!
//! A client that has lost an answer sends the request again with the same `Idempotency-Key` and gets what the first one got; nothing is
//! done twice within a day. Answers are kept in memory; that there was a request is on disk ([`past`]), so after a restart of the
//! keyholder it is refused, and the state says what was done. So is one whose connection or time ended while it was carried out.

mod past;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use identity::Problem;
use sha2::{Digest, Sha256};
use units::BootInstant;

use self::past::{Past, Step};
use crate::clock;
use crate::durable::StorageError;

/// The header that names a request.
pub(crate) const KEY_HEADER: &str = "idempotency-key";

/// Says that an answer is that of an earlier request.
const REPLAYED_HEADER: &str = "idempotency-replayed";

/// Longest name: a UUID has 36 letters.
const KEY_BYTES_MAX: usize = 128;

/// For so long the same request gets the same answer.
const KEPT_MS: u64 = 24 * 3_600_000;

/// Requests that are remembered. The oldest answer of whoever keeps the most goes first; what is under way never goes, because it
/// would be done twice.
const KEPT_MAX: usize = 1_024;

/// Bytes of all answers together.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// What an answer counts beside its body: name, fingerprint and the rest.
const ENTRY_BYTES: usize = 512;

/// Requests of one actor that are under way at once.
const UNDER_WAY_MAX: usize = 64;

/// What those are called who have yet to say who they are: by where they come from, behind this.
pub(crate) const GUEST_PREFIX: &str = "guest/";

/// Longest answer that is kept.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Longest body of any request but a restored ledger: a policy, a list of scopes, a drill's report.
pub(crate) const BODY_BYTES_MAX: usize = 2 << 20;

/// Changing requests a second of one actor, over time: more than a person or a provisioning tool sends.
const REQUESTS_PER_S: u64 = 50;

/// And at once.
const BURST: u64 = 500;

/// Actors that are remembered.
const ACTORS_MAX: usize = 1_024;

const NANOS_PER_REQUEST: u64 = 1_000_000_000 / REQUESTS_PER_S;

/// Whose request it is, and what they call it.
type Name = (String, String);

#[derive(Debug)]
enum Kept {
    UnderWay,
    Answered { status: StatusCode, body: Bytes },
}

#[derive(Debug)]
struct Entry {
    fingerprint: [u8; 32],
    since: BootInstant,
    kept: Kept,
}

/// Of one keyholder.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// When each actor's allowance is whole again (GCRA: the theoretical arrival time of the next request).
    allowances: Mutex<BTreeMap<String, u64>>,
    answers: Mutex<Answers>,
    /// None in tests of what is kept in memory.
    past: Mutex<Option<Past>>,
}

/// The file with what is known over restarts.
pub(crate) const FILE: &str = "requests";

type Answers = BTreeMap<Name, Entry>;

impl Entry {
    fn is_under_way(&self) -> bool {
        matches!(self.kept, Kept::UnderWay)
    }

    fn bytes(&self) -> usize {
        match &self.kept {
            Kept::UnderWay => ENTRY_BYTES,
            Kept::Answered { body, .. } => ENTRY_BYTES + body.len(),
        }
    }
}

/// Drops the oldest answer of the actor who keeps the most, so that nobody's requests push out another's. `false` where there is
/// none to drop.
fn drop_one(answers: &mut Answers) -> bool {
    let mut kept: BTreeMap<&str, usize> = BTreeMap::new();
    for ((who, _), entry) in answers.iter().filter(|(_, entry)| !entry.is_under_way()) {
        *kept.entry(who).or_default() += entry.bytes();
    }
    let Some(most) = kept.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(who, _)| who) else {
        return false;
    };
    let of_them = answers.iter().filter(|((who, _), entry)| who == most && !entry.is_under_way());
    let oldest = of_them.min_by_key(|(_, entry)| entry.since).map(|(name, _)| name.clone());
    oldest.is_some_and(|name| answers.remove(&name).is_some())
}

/// What a request that names itself meets.
enum Met {
    New,
    Again(StatusCode, Bytes),
    Refused(StatusCode, Problem),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Requests {
    /// With what was asked for before this start.
    pub(crate) fn open(file: PathBuf) -> Result<Self, StorageError> {
        let past = Past::open(file, clock::unix_s())?;
        Ok(Self { past: Mutex::new(Some(past)), ..Self::default() })
    }

    /// What is said to a request that came before this start, or whose answer is not kept any more.
    fn meet_past(&self, name: &Name, fingerprint: [u8; 32]) -> Option<Problem> {
        let past = lock(&self.past);
        let known = past.as_ref()?.of(&past::name_hash(&name.0, &name.1), clock::unix_s())?;
        Some(match known.step {
            _ if known.fingerprint != fingerprint => mismatch(),
            Step::Done => Problem::new(
                "already-done",
                "the request with this Idempotency-Key was carried out, and its answer is not kept any more",
                "look at the state, and give the next request a key of its own",
            ),
            Step::Begun | Step::Free => Problem::new(
                "outcome-unknown",
                "the keyholder or the connection ended while the request with this Idempotency-Key was under way",
                "look at the state, and ask again with another key where it was not done",
            ),
        })
    }

    fn note_past(&self, name: &Name, fingerprint: [u8; 32], step: Step) -> Result<(), StorageError> {
        match lock(&self.past).as_mut() {
            Some(past) => past.note(past::name_hash(&name.0, &name.1), fingerprint, step, clock::unix_s()),
            None => Ok(()),
        }
    }

    /// Whether the actor may ask now. Otherwise, in how many seconds.
    pub(crate) fn admit(&self, who: &str, now: BootInstant) -> Result<(), u64> {
        let mut allowances = lock(&self.allowances);
        if allowances.len() >= ACTORS_MAX {
            allowances.retain(|_, whole| *whole > now.0);
        }
        // A person has an allowance of their own, of guests so many as there is room for; the others share one.
        let has_room = allowances.len() < ACTORS_MAX || allowances.contains_key(who);
        let who = if has_room || !who.starts_with(GUEST_PREFIX) { who } else { GUEST_PREFIX };
        let whole = allowances.entry(who.to_owned()).or_insert(now.0);
        let next = (*whole).max(now.0) + NANOS_PER_REQUEST;
        let ahead = next - now.0;
        if ahead > BURST * NANOS_PER_REQUEST {
            return Err((ahead - BURST * NANOS_PER_REQUEST).div_ceil(1_000_000_000));
        }
        *whole = next;
        Ok(())
    }

    fn meet(&self, name: &Name, fingerprint: [u8; 32], now: BootInstant) -> Met {
        let mut answers = lock(&self.answers);
        answers.retain(|_, entry| now < entry.since.saturating_add_ms(KEPT_MS));
        if let Some(entry) = answers.get(name) {
            return match &entry.kept {
                _ if entry.fingerprint != fingerprint => {
                    Met::Refused(StatusCode::UNPROCESSABLE_ENTITY, mismatch())
                }
                Kept::UnderWay => Met::Refused(
                    StatusCode::CONFLICT,
                    Problem::new(
                        "under-way",
                        "the request with this Idempotency-Key is still under way",
                        "ask again in a moment",
                    ),
                ),
                Kept::Answered { status, body } => Met::Again(*status, body.clone()),
            };
        }
        if let Some(problem) = self.meet_past(name, fingerprint) {
            let status = match problem.kind.as_str() {
                MISMATCH => StatusCode::UNPROCESSABLE_ENTITY,
                _ => StatusCode::CONFLICT,
            };
            return Met::Refused(status, problem);
        }
        let own = answers.iter().filter(|((who, _), entry)| *who == name.0 && entry.is_under_way()).count();
        let mut has_room = own < UNDER_WAY_MAX;
        while has_room && answers.len() >= KEPT_MAX {
            has_room = drop_one(&mut answers);
        }
        if !has_room {
            return Met::Refused(
                StatusCode::TOO_MANY_REQUESTS,
                Problem::new(
                    "too-often",
                    "too many requests with an Idempotency-Key are under way",
                    "wait for their answers",
                ),
            );
        }
        answers.insert(name.clone(), Entry { fingerprint, since: now, kept: Kept::UnderWay });
        Met::New
    }

    fn keep(&self, name: &Name, status: StatusCode, body: Bytes) {
        let mut answers = lock(&self.answers);
        let bytes = |answers: &Answers| answers.values().map(Entry::bytes).sum::<usize>();
        while bytes(&answers) + body.len() > KEPT_BYTES_MAX && drop_one(&mut answers) {}
        if let Some(entry) = answers.get_mut(name) {
            entry.kept = Kept::Answered { status, body };
        }
    }

    fn forget_unanswered(&self, name: &Name, outcome: Outcome) {
        let mut answers = lock(&self.answers);
        let unanswered = |entry: &&Entry| matches!(entry.kept, Kept::UnderWay);
        let Some(fingerprint) = answers.get(name).filter(unanswered).map(|entry| entry.fingerprint) else {
            return;
        };
        answers.remove(name);
        if outcome == Outcome::Unknown {
            return;
        }
        if let Err(error) = self.note_past(name, fingerprint, Step::Free) {
            tracing::warn!(%error, "a request that was not carried out cannot be sent again after a restart");
        }
    }
}

/// A request that is under way.
struct UnderWay {
    requests: Arc<Requests>,
    name: Name,
    outcome: Outcome,
}

/// What is known of a request that nobody is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing was done: it can be sent again.
    NotDone,
    /// It was begun. Where its connection ends, or its time, nobody knows how far it came, and it is not done a second time.
    Unknown,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.requests.forget_unanswered(&self.name, self.outcome);
    }
}

/// Runs the request, or gives the answer that it has had. `refuse` makes an answer of a problem.
pub(crate) async fn once(
    requests: &Arc<Requests>,
    who: &str,
    request: Request,
    body_bytes_max: usize,
    next: Next,
    refuse: impl Fn(StatusCode, Problem) -> Response,
) -> Response {
    let Some(key) = request.headers().get(KEY_HEADER) else { return next.run(request).await };
    let key = key.to_str().unwrap_or_default().to_owned();
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let problem = Problem::new(
            "invalid",
            "an Idempotency-Key has 1 to 128 printable letters",
            "give each request a random one, as a UUID",
        );
        return refuse(StatusCode::BAD_REQUEST, problem);
    }
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, body_bytes_max).await else {
        let said = format!("the body did not arrive whole, or has more than {body_bytes_max} bytes");
        let problem = Problem::new("invalid", said, "send it again, or less");
        return refuse(StatusCode::BAD_REQUEST, problem);
    };
    let mut fingerprint = Sha256::new();
    for part in [head.method.as_str().as_bytes(), head.uri.to_string().as_bytes(), &body] {
        fingerprint.update((part.len() as u64).to_le_bytes());
        fingerprint.update(part);
    }
    let name = (who.to_owned(), key);
    let fingerprint = fingerprint.finalize().into();
    match requests.meet(&name, fingerprint, clock::now()) {
        Met::New => {}
        Met::Refused(status, problem) => return refuse(status, problem),
        Met::Again(status, body) => return again(status, body),
    }
    let mut under_way = UnderWay { requests: Arc::clone(requests), name, outcome: Outcome::NotDone };
    // Before anything is done, and before it is answered: a crash in between must not have it done twice.
    let note = |step| tokio::task::block_in_place(|| requests.note_past(&under_way.name, fingerprint, step));
    if let Err(error) = note(Step::Begun) {
        return refuse(StatusCode::INTERNAL_SERVER_ERROR, unrecorded(&error));
    }
    under_way.outcome = Outcome::Unknown;
    let response = next.run(Request::from_parts(head, Body::from(body))).await;
    let (head, body) = response.into_parts();
    if !head.status.is_success() {
        under_way.outcome = Outcome::NotDone;
    }
    // A refusal may be none the next time: only what was done is not done again.
    match to_bytes(body, ANSWER_BYTES_MAX).await {
        Ok(body) => {
            if head.status.is_success() {
                if let Err(error) = note(Step::Done) {
                    tracing::error!(%error, "a request that was carried out is not recorded as that");
                }
                requests.keep(&under_way.name, head.status, body.clone());
            }
            Response::from_parts(head, Body::from(body))
        }
        Err(_) => {
            let problem = Problem::new(
                "failed",
                "the answer is too long to be kept",
                "look at the state, and ask again without an Idempotency-Key",
            );
            refuse(StatusCode::INTERNAL_SERVER_ERROR, problem)
        }
    }
}

/// Stands in the problem of a name that was used for something else.
const MISMATCH: &str = "idempotency-mismatch";

fn mismatch() -> Problem {
    Problem::new(
        MISMATCH,
        "this Idempotency-Key was sent with another request",
        "give each request a key of its own",
    )
}

fn unrecorded(error: &StorageError) -> Problem {
    let text = error.to_string();
    let (message, next_step) = text.split_once("; ").unwrap_or((&text, ""));
    Problem::new("failed", message, next_step)
}

fn again(status: StatusCode, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(actor: &str, key: &str) -> Name {
        (actor.to_owned(), key.to_owned())
    }

    #[test]
    fn a_burst_passes_one_more_does_not_and_time_brings_more() {
        let requests = Requests::default();
        let begin = BootInstant(1_000);
        for number in 0..BURST {
            assert!(requests.admit("a", begin).is_ok(), "{number}");
        }
        assert_eq!(requests.admit("a", begin), Err(1));
        assert!(requests.admit("b", begin).is_ok(), "others are not affected");
        let later = BootInstant(begin.0 + NANOS_PER_REQUEST);
        assert!(requests.admit("a", later).is_ok());
        assert!(requests.admit("a", later).is_err());
    }

    #[test]
    fn guests_past_the_room_that_there_is_share_an_allowance_and_people_do_not() {
        let requests = Requests::default();
        let begin = BootInstant(1_000);
        for number in 0..ACTORS_MAX {
            assert!(requests.admit(&format!("{GUEST_PREFIX}{number}"), begin).is_ok(), "{number}");
        }
        let admitted = (0..2 * BURST)
            .filter(|number| requests.admit(&format!("{GUEST_PREFIX}more-{number}"), begin).is_ok());
        assert_eq!(admitted.count() as u64, BURST);
        assert!(requests.admit("operator/anna", begin).is_ok());
        assert!(lock(&requests.allowances).len() <= ACTORS_MAX + 2);
    }

    #[test]
    fn the_same_request_gets_the_same_answer_and_another_under_its_name_is_refused() {
        let requests = Requests::default();
        let (now, one) = (BootInstant(0), name("a", "k"));
        assert!(matches!(requests.meet(&one, [1; 32], now), Met::New));
        assert!(matches!(requests.meet(&one, [1; 32], now), Met::Refused(StatusCode::CONFLICT, _)));
        requests.keep(&one, StatusCode::OK, Bytes::from_static(b"{}"));
        assert!(
            matches!(requests.meet(&one, [1; 32], now), Met::Again(StatusCode::OK, body) if body == "{}")
        );
        let other = requests.meet(&one, [2; 32], now);
        assert!(matches!(other, Met::Refused(StatusCode::UNPROCESSABLE_ENTITY, _)));
        assert!(
            matches!(requests.meet(&name("b", "k"), [2; 32], now), Met::New),
            "names are each actor's own"
        );
        let tomorrow = BootInstant(0).saturating_add_ms(KEPT_MS);
        assert!(matches!(requests.meet(&one, [2; 32], tomorrow), Met::New));
    }

    #[test]
    fn a_request_that_was_not_carried_out_can_be_sent_again_and_an_answered_one_stays() {
        let requests = Arc::new(Requests::default());
        let one = name("a", "k");
        assert!(matches!(requests.meet(&one, [1; 32], BootInstant(0)), Met::New));
        let under_way =
            || UnderWay { requests: Arc::clone(&requests), name: one.clone(), outcome: Outcome::NotDone };
        drop(under_way());
        assert!(matches!(requests.meet(&one, [1; 32], BootInstant(0)), Met::New));
        requests.keep(&one, StatusCode::OK, Bytes::new());
        drop(under_way());
        assert!(matches!(requests.meet(&one, [1; 32], BootInstant(0)), Met::Again(..)));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_request_whose_connection_ended_while_it_was_carried_out_is_not_carried_out_again() {
        use axum::response::IntoResponse;
        use tower::ServiceExt;
        let dir = tempfile::tempdir().unwrap();
        let requests = Arc::new(Requests::open(dir.path().join("requests")).unwrap());
        let begun = Arc::new(tokio::sync::Semaphore::new(0));
        let handler = {
            let begun = Arc::clone(&begun);
            move || {
                begun.add_permits(1);
                std::future::pending::<()>()
            }
        };
        let refuse = |status: StatusCode, problem: Problem| (status, problem.kind).into_response();
        let around = move |request: Request, next: Next| {
            let requests = Arc::clone(&requests);
            async move { once(&requests, "a", request, 1_024, next, refuse).await }
        };
        let router = axum::Router::new()
            .route("/", axum::routing::post(handler))
            .layer(axum::middleware::from_fn(around));
        let request = || Request::post("/").header(KEY_HEADER, "k").body(Body::empty()).unwrap();
        let first = tokio::spawn(router.clone().oneshot(request()));
        begun.acquire().await.unwrap().forget();
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        let second = router.oneshot(request()).await.unwrap();
        assert_eq!(second.status(), StatusCode::CONFLICT);
        assert_eq!(to_bytes(second.into_body(), 1_024).await.unwrap(), "outcome-unknown");
        assert_eq!(begun.available_permits(), 0, "it was carried out again");
    }

    #[test]
    fn no_more_than_the_limit_is_kept_and_the_oldest_answer_of_whoever_keeps_the_most_goes() {
        let requests = Requests::default();
        let ask = |who: &str, number: usize| {
            let name = name(who, &number.to_string());
            let met = requests.meet(&name, [0; 32], BootInstant(number as u64 + 1));
            (name, matches!(met, Met::New))
        };
        let kept = |name: &Name| lock(&requests.answers).contains_key(name);
        let (modest, _) = ask("modest", 0);
        requests.keep(&modest, StatusCode::OK, Bytes::new());
        let (under_way, _) = ask("greedy", 1);
        for number in 2..=KEPT_MAX + 1 {
            let (name, new) = ask("greedy", number);
            assert!(new, "{number}");
            requests.keep(&name, StatusCode::OK, Bytes::new());
        }
        assert_eq!(lock(&requests.answers).len(), KEPT_MAX);
        assert!(kept(&modest), "older, and another's");
        assert!(kept(&under_way), "it would be done twice");
        assert!(!kept(&name("greedy", "2")) && !kept(&name("greedy", "3")));
    }

    #[test]
    fn one_actor_has_so_many_requests_under_way_and_no_more() {
        let requests = Requests::default();
        for number in 0..UNDER_WAY_MAX {
            let name = name("a", &number.to_string());
            assert!(matches!(requests.meet(&name, [0; 32], BootInstant(0)), Met::New), "{number}");
        }
        let refused = requests.meet(&name("a", "more"), [0; 32], BootInstant(0));
        assert!(matches!(refused, Met::Refused(StatusCode::TOO_MANY_REQUESTS, _)));
        assert!(matches!(requests.meet(&name("b", "0"), [0; 32], BootInstant(0)), Met::New));
    }

    #[test]
    fn all_answers_together_are_bounded_in_bytes() {
        let requests = Requests::default();
        let body = Bytes::from(vec![b'x'; ANSWER_BYTES_MAX]);
        let count = KEPT_BYTES_MAX / ANSWER_BYTES_MAX + 3;
        for number in 0..count {
            let name = name("a", &number.to_string());
            assert!(matches!(requests.meet(&name, [0; 32], BootInstant(number as u64)), Met::New));
            requests.keep(&name, StatusCode::OK, body.clone());
        }
        let answers = lock(&requests.answers);
        let bytes: usize = answers.values().map(Entry::bytes).sum();
        assert!(bytes <= KEPT_BYTES_MAX + ENTRY_BYTES && bytes > KEPT_BYTES_MAX / 2, "{bytes}");
        assert!(
            answers.contains_key(&name("a", &(count - 1).to_string()))
                && !answers.contains_key(&name("a", "0"))
        );
    }
}
