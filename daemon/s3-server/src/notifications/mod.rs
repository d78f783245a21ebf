//! Notifications: what happens to objects, told to webhooks that the operator named.
//!
//! ```text
//!   a bucket's configuration ── Herald: whom a request's change is told ── one commit with the change (objects::events)
//!                                                                               │
//!   transport, which the program brings ── delivery: one message at a time ◀────┘
//! ```
//!
//! Invariants:
//! - A client names webhooks, never addresses: the node sends only to where its own configuration says.
//! - What was acknowledged is told at least once, to each destination in the order of its commits, with the same id each time.
//! - A message belongs to one serving: what is under way when the key goes is abandoned, and told again with the next serving.
//!
//! Amazon S3 User Guide, "Amazon S3 Event Notifications" and "Event message structure".

pub(crate) mod delivery;
mod message;

use objects::{Happened, Notice, Notices};
use s3s::dto::{NotificationConfiguration, NotificationConfigurationFilter};
use s3s::{S3Request, S3Result, s3_error};

use crate::access::{Account, Admission};
use crate::authority::Authority;
use crate::limits::NOTIFICATION_RULES_MAX;

/// Everything that can happen here, as subscriptions call it.
const EVENTS: [&str; 11] = [
    "ObjectCreated:Put",
    "ObjectCreated:Post",
    "ObjectCreated:Copy",
    "ObjectCreated:CompleteMultipartUpload",
    "ObjectRemoved:Delete",
    "ObjectRemoved:DeleteMarkerCreated",
    "LifecycleExpiration:Delete",
    "LifecycleExpiration:DeleteMarkerCreated",
    "ObjectTagging:Put",
    "ObjectTagging:Delete",
    "ObjectAcl:Put",
];

/// What tells a new destination that it is one.
pub(crate) const TEST_EVENT: &str = "s3:TestEvent";

/// What a delete may do, as it is called where a client asks for it.
pub(crate) const REMOVED: [(Happened, &str); 2] =
    [(Happened::Removed, "ObjectRemoved:Delete"), (Happened::Hidden, "ObjectRemoved:DeleteMarkerCreated")];

/// The same where a lifecycle does.
pub(crate) const EXPIRED: [(Happened, &str); 2] = [
    (Happened::Removed, "LifecycleExpiration:Delete"),
    (Happened::Hidden, "LifecycleExpiration:DeleteMarkerCreated"),
];

/// Who is to be told of what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    id: String,
    pub(crate) destination: String,
    /// `ObjectCreated:Put`, or `ObjectCreated:*`.
    events: Vec<String>,
    prefix: String,
    suffix: String,
}

impl Rule {
    fn fits(&self, event: &str, key: &str) -> bool {
        let named = |pattern: &String| match pattern.strip_suffix('*') {
            Some(kind) => event.starts_with(kind),
            None => event == pattern,
        };
        self.events.iter().any(named) && key.starts_with(&self.prefix) && key.ends_with(&self.suffix)
    }
}

/// The rules of a configuration.
pub(crate) fn read(configuration: &NotificationConfiguration) -> S3Result<Vec<Rule>> {
    if configuration.event_bridge_configuration.is_some() {
        return Err(s3_error!(NotImplemented, "there is no EventBridge: name a webhook as topic or queue"));
    }
    if configuration.lambda_function_configurations.as_ref().is_some_and(|list| !list.is_empty()) {
        return Err(s3_error!(NotImplemented, "there are no functions: name a webhook as topic or queue"));
    }
    let topics = configuration.topic_configurations.iter().flatten();
    let topics =
        topics.map(|topic| rule((&topic.id, "sns", &topic.topic_arn), &topic.events, topic.filter.as_ref()));
    let queues = configuration.queue_configurations.iter().flatten();
    let queues =
        queues.map(|queue| rule((&queue.id, "sqs", &queue.queue_arn), &queue.events, queue.filter.as_ref()));
    let rules = topics.chain(queues).collect::<S3Result<Vec<_>>>()?;
    match rules.len() <= NOTIFICATION_RULES_MAX {
        true => Ok(rules),
        false => Err(s3_error!(
            InvalidArgument,
            "a bucket has at most {NOTIFICATION_RULES_MAX} notification configurations"
        )),
    }
}

fn rule(
    (id, service, arn): (&Option<String>, &str, &str),
    events: &[impl AsRef<str>],
    filter: Option<&NotificationConfigurationFilter>,
) -> S3Result<Rule> {
    let parts: Vec<&str> = arn.split(':').collect();
    let destination = match parts.as_slice() {
        ["arn", _, named, _, _, name] if *named == service && !name.is_empty() => (*name).to_owned(),
        _ => return Err(s3_error!(InvalidArgument, "a destination is named like arn:aws:{service}:::NAME")),
    };
    let events: Vec<String> = events.iter().map(|event| known(event.as_ref())).collect::<S3Result<_>>()?;
    if events.is_empty() {
        return Err(s3_error!(MalformedXML, "a notification configuration names events"));
    }
    let mut rule = Rule {
        id: id.clone().unwrap_or_default(),
        destination,
        events,
        prefix: String::new(),
        suffix: String::new(),
    };
    let filters = filter.and_then(|filter| filter.key.as_ref()?.filter_rules.as_ref());
    let (mut prefixes, mut suffixes) = (0, 0);
    for filter in filters.into_iter().flatten() {
        let value = filter.value.clone().unwrap_or_default();
        match filter.name.as_ref().map(|name| name.as_str().to_ascii_lowercase()).as_deref() {
            Some("prefix") => (rule.prefix, prefixes) = (value, prefixes + 1),
            Some("suffix") => (rule.suffix, suffixes) = (value, suffixes + 1),
            _ => return Err(s3_error!(InvalidArgument, "a filter is about a prefix or a suffix")),
        }
    }
    match prefixes <= 1 && suffixes <= 1 {
        true => Ok(rule),
        false => Err(s3_error!(InvalidArgument, "a filter has one prefix and one suffix at most")),
    }
}

/// An event, or all of a kind, if it can happen here.
fn known(event: &str) -> S3Result<String> {
    let name = event.strip_prefix("s3:").unwrap_or_default();
    let happens = EVENTS.iter().any(|known| match name.strip_suffix('*') {
        Some(kind) => kind.ends_with(':') && known.starts_with(kind),
        None => *known == name,
    });
    match happens {
        true => Ok(name.to_owned()),
        false => Err(s3_error!(InvalidArgument, "{event} is no event that happens here")),
    }
}

/// Finds out whom to tell of what a request does.
#[derive(Clone, Debug)]
pub(crate) struct Herald {
    admission: Admission,
    account: Account,
}

impl Herald {
    pub(crate) fn of<T>(request: &S3Request<T>, admission: &Admission) -> Self {
        let account = request.extensions.get::<Account>().cloned().unwrap_or_default();
        Self { admission: admission.clone(), account }
    }

    /// Whom to tell, if what happens to `key` is one of these.
    pub(crate) fn notices(&self, key: &str, happenings: &[(Happened, &'static str)]) -> Notices {
        let to = told(&self.admission.authority, key, happenings);
        if to.is_empty() {
            return Notices::default();
        }
        Notices {
            to,
            user: self.admission.caller().owner(),
            address: self.account.address().map(|address| address.to_string()).unwrap_or_default(),
            request: self.account.request().to_owned(),
        }
    }

    /// Whom to tell that there is a new object by `key`.
    pub(crate) fn made(&self, key: &str, event: &'static str) -> Notices {
        let is_form = self.account.operation() == "PostObject";
        self.notices(key, &[(Happened::Made, if is_form { "ObjectCreated:Post" } else { event })])
    }

    /// Tells every destination of `rules` that it is one.
    pub(crate) fn test(&self, rules: &[Rule]) -> Notices {
        let mut destinations: Vec<&str> = rules.iter().map(|rule| rule.destination.as_str()).collect();
        destinations.sort_unstable();
        destinations.dedup();
        let notice = |destination: &str| Notice {
            happened: Happened::Changed,
            event: TEST_EVENT,
            destination: destination.to_owned(),
            configuration: String::new(),
        };
        let to = destinations.into_iter().map(notice).collect();
        Notices { to, request: self.account.request().to_owned(), ..Notices::default() }
    }
}

/// Whom a bucket's rules name for what happens to `key`.
fn told(authority: &Authority, key: &str, happenings: &[(Happened, &'static str)]) -> Vec<Notice> {
    notices_of(&authority.notifications, key, happenings)
}

/// Whom rules name for what happens to `key`.
pub(crate) fn notices_of(rules: &[Rule], key: &str, happenings: &[(Happened, &'static str)]) -> Vec<Notice> {
    let pairs = rules.iter().flat_map(|rule| happenings.iter().map(move |happening| (rule, happening)));
    let fitting = pairs.filter(|(rule, (_, event))| rule.fits(event, key));
    fitting
        .map(|(rule, (happened, event))| Notice {
            happened: *happened,
            event,
            destination: rule.destination.clone(),
            configuration: rule.id.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents;

    fn configuration(text: &str) -> S3Result<Vec<Rule>> {
        let text = format!("<NotificationConfiguration>{text}</NotificationConfiguration>");
        read(&documents::parse(text.as_bytes())?)
    }

    fn queue(arn: &str, event: &str, filter: &str) -> String {
        format!(
            "<QueueConfiguration><Id>1</Id><Queue>{arn}</Queue><Event>{event}</Event>{filter}</QueueConfiguration>"
        )
    }

    #[test]
    fn a_rule_tells_of_what_it_names_and_of_nothing_else() {
        let filter = "<Filter><S3Key><FilterRule><Name>prefix</Name><Value>in/</Value></FilterRule>\
                      <FilterRule><Name>suffix</Name><Value>.jpg</Value></FilterRule></S3Key></Filter>";
        let rules = configuration(&queue("arn:aws:sqs:::hook", "s3:ObjectCreated:*", filter)).unwrap();
        let told = |key, event| notices_of(&rules, key, &[(Happened::Made, event)]).len();
        assert_eq!(told("in/a.jpg", "ObjectCreated:Put"), 1);
        assert_eq!(told("in/a.jpg", "ObjectCreated:Copy"), 1);
        assert_eq!(told("in/a.jpg", "ObjectRemoved:Delete"), 0);
        assert_eq!((told("in/a.png", "ObjectCreated:Put"), told("out/a.jpg", "ObjectCreated:Put")), (0, 0));
        let one = configuration(&queue("arn:aws:sqs:::hook", "s3:ObjectCreated:Put", "")).unwrap();
        assert!(notices_of(&one, "k", &[(Happened::Made, "ObjectCreated:Copy")]).is_empty());
        let deletes = configuration(&queue("arn:aws:sqs:::hook", "s3:ObjectRemoved:*", "")).unwrap();
        assert_eq!(notices_of(&deletes, "k", &REMOVED).len(), 2, "whichever of them it turns out to be");
    }

    #[test]
    fn what_cannot_happen_or_is_no_destination_is_refused() {
        for (arn, event) in [
            ("arn:aws:sqs:::hook", "s3:ObjectRestore:Post"),
            ("arn:aws:sqs:::hook", "s3:*"),
            ("arn:aws:sqs:::hook", "ObjectCreated:Put"),
            ("arn:aws:sqs:::", "s3:ObjectCreated:Put"),
            ("arn:aws:sns:::hook", "s3:ObjectCreated:Put"),
            ("https://example.com", "s3:ObjectCreated:Put"),
        ] {
            assert!(configuration(&queue(arn, event, "")).is_err(), "{arn} {event}");
        }
        assert!(configuration("<EventBridgeConfiguration></EventBridgeConfiguration>").is_err());
        let many = queue("arn:aws:sqs:::hook", "s3:ObjectCreated:Put", "").repeat(NOTIFICATION_RULES_MAX + 1);
        assert!(configuration(&many).is_err());
    }
}
