//! Notifications, from a configuration to what a receiver gets.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use objects::EventCounts;
use s3_server::{Posted, S3Options, S3Server, Webhook, WebhookMessage, WebhookSecret, WebhookTransport};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::client::{Answered, Asked, Client};
use crate::server::{Running, options};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// A receiver that answers as it is told to, and with 200 when nothing is left to say.
#[derive(Clone)]
struct Receiver {
    answers: Arc<Mutex<VecDeque<Result<u16, String>>>>,
    /// What answers every further message.
    always: Arc<Mutex<Result<u16, String>>>,
    got: mpsc::UnboundedSender<(String, Value)>,
}

impl WebhookTransport for Receiver {
    fn post(&self, message: WebhookMessage) -> Posted<'_> {
        let header = |name: &str| {
            message.headers.iter().find(|(found, _)| *found == name).map(|(_, value)| value.clone()).unwrap()
        };
        assert!(header("webhook-signature").starts_with("v1,") && header("webhook-timestamp").len() == 10);
        let body = serde_json::from_slice(&message.body).unwrap();
        self.got.send((header("webhook-id"), body)).unwrap();
        let answer = self.answers.lock().unwrap().pop_front();
        let answer = answer.unwrap_or_else(|| self.always.lock().unwrap().clone());
        Box::pin(async move { answer })
    }
}

struct Site {
    running: Running,
    receiver: Receiver,
    got: mpsc::UnboundedReceiver<(String, Value)>,
}

impl Site {
    async fn start(give_up_after: Duration) -> Self {
        let options = S3Options { webhooks: vec!["hook".to_owned()], ..options() };
        let running = Running::start_with(options).await;
        let (sender, got) = mpsc::unbounded_channel();
        let receiver =
            Receiver { answers: Arc::default(), always: Arc::new(Mutex::new(Ok(200))), got: sender };
        let webhook = Webhook {
            name: "hook".to_owned(),
            secret: WebhookSecret::parse(SECRET).unwrap(),
            give_up_after,
            retry_first: Duration::from_millis(1),
            transport: Box::new(receiver.clone()),
        };
        let server = running.server.clone();
        tokio::spawn(async move { server.keep_webhook(webhook).await });
        Self { running, receiver, got }
    }

    async fn ask(&self, method: &'static str, path: &str, body: &str) -> Answered {
        let asked = Asked::new(method, path).header("content-length", body.len()).sign(&self.running);
        Client::connect(&self.running).await.ask(&asked, body.as_bytes()).await
    }

    async fn configure(&mut self, events: &[&str], arn: &str) -> u16 {
        let events: String = events.iter().map(|event| format!("<Event>{event}</Event>")).collect();
        let text = format!(
            "<NotificationConfiguration><QueueConfiguration><Queue>{arn}</Queue>{events}<Filter><S3Key>\
             <FilterRule><Name>prefix</Name><Value>in/</Value></FilterRule></S3Key></Filter>\
             </QueueConfiguration></NotificationConfiguration>"
        );
        self.ask("PUT", "/bucket?notification", &text).await.status
    }

    /// The next message.
    async fn next(&mut self) -> (String, Value) {
        tokio::time::timeout(Duration::from_secs(60), self.got.recv()).await.expect("a message").unwrap()
    }

    /// Names and keys in messages, until there were so many.
    async fn records(&mut self, wanted: usize) -> Vec<(String, String)> {
        let mut records = Vec::new();
        while records.len() < wanted {
            let (_, body) = self.next().await;
            for record in body["Records"].as_array().expect("records") {
                let text = |value: &Value| value.as_str().unwrap().to_owned();
                records.push((text(&record["eventName"]), text(&record["s3"]["object"]["key"])));
            }
        }
        records
    }

    fn answer(&self, answers: impl IntoIterator<Item = Result<u16, String>>) {
        self.receiver.answers.lock().unwrap().extend(answers);
    }

    fn always(&self, answer: Result<u16, String>) {
        *self.receiver.always.lock().unwrap() = answer;
    }

    fn counts(&self) -> EventCounts {
        self.running.store.event_counts().unwrap().first().cloned().unwrap_or_default().1
    }

    async fn until(&self, expected: EventCounts) {
        for _ in 0..2_400 {
            if self.counts() == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{:?} instead of {expected:?}", self.counts());
    }
}

const DAY: Duration = Duration::from_secs(24 * 3600);
const HOOK: &str = "arn:aws:sqs:eu-central-1::hook";

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_is_told_of_what_it_asked_for_in_order() {
    let mut site = Site::start(DAY).await;
    assert_eq!(site.configure(&["s3:ObjectCreated:*", "s3:ObjectRemoved:*"], HOOK).await, 200);
    let read = site.ask("GET", "/bucket?notification", "").await.text();
    assert!(
        read.contains("<Queue>arn:aws:sqs:eu-central-1::hook</Queue>") && read.contains("<Id>"),
        "{read}"
    );
    let (_, test) = site.next().await;
    assert_eq!((test["Event"].as_str(), test["Bucket"].as_str()), (Some("s3:TestEvent"), Some("bucket")));

    let put = site.ask("PUT", "/bucket/in/a%20b", "twelve bytes").await;
    assert_eq!(put.status, 200);
    let (_, body) = site.next().await;
    let record = &body["Records"][0];
    let object = &record["s3"]["object"];
    assert_eq!(record["eventName"], "ObjectCreated:Put");
    assert_eq!((object["key"].as_str(), object["size"].as_u64()), (Some("in/a+b"), Some(12)));
    assert_eq!(format!("\"{}\"", object["eTag"].as_str().unwrap()), put.headers["etag"]);
    assert_eq!(record["userIdentity"]["principalId"], "tester");
    assert_eq!(record["requestParameters"]["sourceIPAddress"], "127.0.0.1");
    assert_eq!(record["responseElements"]["x-amz-request-id"], put.headers["x-amz-request-id"].as_str());
    assert_eq!(record["awsRegion"], "eu-central-1");

    site.ask("PUT", "/bucket/out/other", "x").await;
    let copy = Asked::new("PUT", "/bucket/in/copy").header("x-amz-copy-source", "/bucket/in/a%20b");
    let copy = copy.header("content-length", 0).sign(&site.running);
    assert_eq!(Client::connect(&site.running).await.ask(&copy, b"").await.status, 200);
    site.ask("PUT", "/bucket/in/a%20b?tagging", "<Tagging><TagSet/></Tagging>").await;
    let keys = "<Delete><Object><Key>in/copy</Key></Object><Object><Key>in/never</Key></Object></Delete>";
    assert_eq!(site.ask("POST", "/bucket?delete", keys).await.status, 200);
    site.ask("DELETE", "/bucket/in/a%20b", "").await;
    let expected = [
        ("ObjectCreated:Copy", "in/copy"),
        ("ObjectRemoved:Delete", "in/copy"),
        ("ObjectRemoved:Delete", "in/a+b"),
    ];
    assert_eq!(site.records(3).await, expected.map(|(name, key)| (name.to_owned(), key.to_owned())));
    site.until(EventCounts::default()).await;
    let state = &site.running.server.webhooks()["hook"];
    assert_eq!((state.delivered, state.trouble.as_deref()), (5, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_taken_is_sent_again_with_the_same_id_until_it_is() {
    let mut site = Site::start(DAY).await;
    assert_eq!(site.configure(&["s3:ObjectCreated:*"], HOOK).await, 200);
    site.next().await;
    site.until(EventCounts::default()).await;
    site.answer([Err("connection refused".to_owned()), Ok(503), Ok(429), Ok(302), Ok(204)]);
    site.ask("PUT", "/bucket/in/k", "x").await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(site.next().await.0);
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    site.until(EventCounts::default()).await;
    assert!(site.running.metrics_text().contains("s3_notifications_failed_total 4"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_receiver_refuses_becomes_a_dead_letter_and_stops_no_others() {
    let mut site = Site::start(DAY).await;
    assert_eq!(site.configure(&["s3:ObjectCreated:*"], HOOK).await, 200);
    site.next().await;
    site.until(EventCounts::default()).await;
    site.always(Ok(400));
    site.ask("PUT", "/bucket/in/bad", "x").await;
    site.until(EventCounts { waiting: 0, dead: 1 }).await;
    site.always(Ok(200));
    site.ask("PUT", "/bucket/in/good", "x").await;
    site.until(EventCounts { waiting: 0, dead: 1 }).await;
    let store = Arc::clone(&site.running.store);
    let retried = tokio::task::spawn_blocking(move || store.retry_events("hook").unwrap()).await.unwrap();
    assert_eq!(retried, 1);
    site.until(EventCounts::default()).await;
    assert_eq!(site.running.server.webhooks()["hook"].delivered, 3, "the test, the good one and the bad one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_one_bad_event_is_sent_event_by_event() {
    let mut site = Site::start(DAY).await;
    assert_eq!(site.configure(&["s3:ObjectCreated:*"], HOOK).await, 200);
    site.next().await;
    site.until(EventCounts::default()).await;
    // While the first is in trouble the others gather.
    site.always(Err("away".to_owned()));
    site.ask("PUT", "/bucket/in/0", "x").await;
    site.next().await;
    for key in ["in/1", "in/2", "in/3"] {
        site.ask("PUT", &format!("/bucket/{key}"), "x").await;
    }
    // The first alone, then three together: refused; then each by itself.
    site.answer([Ok(200), Ok(413)]);
    site.always(Ok(200));
    site.until(EventCounts::default()).await;
    let mut last = Vec::new();
    while let Ok((_, body)) = site.got.try_recv() {
        let records = body["Records"].as_array().unwrap();
        last.push(records.iter().map(|record| record["s3"]["object"]["key"].clone()).collect::<Vec<_>>());
    }
    let alone: Vec<_> = last.iter().rev().take(3).rev().cloned().collect();
    assert_eq!(alone, [["in/1"], ["in/2"], ["in/3"]], "{last:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_becomes_a_dead_letter() {
    let mut site = Site::start(Duration::from_millis(300)).await;
    assert_eq!(site.configure(&["s3:ObjectCreated:*"], HOOK).await, 200);
    site.next().await;
    site.until(EventCounts::default()).await;
    site.always(Err("away".to_owned()));
    site.ask("PUT", "/bucket/in/k", "x").await;
    site.until(EventCounts { waiting: 0, dead: 1 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_and_unsealed_it_goes_on_where_it_was() {
    let mut site = Site::start(DAY).await;
    assert_eq!(site.configure(&["s3:ObjectCreated:*"], HOOK).await, 200);
    site.next().await;
    site.until(EventCounts::default()).await;
    site.always(Err("away".to_owned()));
    site.ask("PUT", "/bucket/in/k", "x").await;
    let (id, _) = site.next().await;
    site.running.seal().await;
    site.always(Ok(200));
    site.running.unseal().await;
    site.until(EventCounts::default()).await;
    let mut again = 0;
    while let Ok((same, body)) = site.got.try_recv() {
        assert_eq!((same, &body["Records"][0]["s3"]["object"]["key"]), (id.clone(), &Value::from("in/k")));
        again += 1;
    }
    assert!(again > 0);
    assert_eq!(site.running.server.webhooks()["hook"].trouble, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn lifecycles_tell_of_what_expires() {
    let mut site = Site::start(DAY).await;
    assert_eq!(site.configure(&["s3:LifecycleExpiration:*"], HOOK).await, 200);
    site.next().await;
    site.ask("PUT", "/bucket/in/old", "x").await;
    let rules = "<LifecycleConfiguration><Rule><ID>r</ID><Status>Enabled</Status><Filter><Prefix>in/</Prefix></Filter>\
                 <Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>";
    assert_eq!(site.ask("PUT", "/bucket?lifecycle", rules).await.status, 200);
    let lifecycles = site.running.server.clone();
    tokio::spawn(async move { lifecycles.keep_lifecycles(Duration::from_secs(1)).await });
    assert_eq!(site.records(1).await, [("LifecycleExpiration:Delete".to_owned(), "in/old".to_owned())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_webhooks_that_the_operator_named_are_taken() {
    let mut site = Site::start(DAY).await;
    for arn in ["arn:aws:sqs:::other", "https://example.com/", "arn:aws:lambda:::hook"] {
        assert_eq!(site.configure(&["s3:ObjectCreated:*"], arn).await, 400, "{arn}");
    }
    assert_eq!(site.configure(&["s3:ObjectCreated:Nothing"], HOOK).await, 400);
    let stranger = site.running.store.create_user("stranger").unwrap();
    let asked = Asked::new("GET", "/bucket?notification").sign_as(&site.running, &stranger);
    // The bucket of these tests is every user's; nobody's requests are refused.
    assert_eq!(Client::connect(&site.running).await.ask(&asked, b"").await.status, 200);
    let unsigned = Asked::new("GET", "/bucket?notification").header("host", site.running.address);
    assert_eq!(Client::connect(&site.running).await.ask(&unsigned, b"").await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_for_a_webhook_that_is_none_any_more() {
    let mut site = Site::start(DAY).await;
    assert_eq!(site.configure(&["s3:ObjectCreated:*"], HOOK).await, 200);
    let lost = site.running.store.events_lost();
    // The next start of the node has a configuration without it.
    let without = S3Server::with_options(options()).unwrap();
    without.set_store(Some(Arc::clone(&site.running.store)));
    assert_eq!(site.ask("PUT", "/bucket/in/a", "a").await.status, 200);
    assert_eq!(site.running.store.events_lost(), lost + 1);
}
