//! The policy: which node may hold which key, where, when and after what; how many people it takes; how they prove who they are.
//! A file that people keep under version control; POLICY.md explains each line.
//!
//! Invariants:
//! - What a file does not say is as it is without a file: a policy only ever adds conditions to what the keyholder does without one.
//! - A refusal says why, and what would be needed ([`Refusal`]).
//! - Whether a new policy asks for less than the old one is computed here ([`loosenings`]), not left to whoever applies it.
//!
//! It reads no clock and no ledger: what is known is handed in ([`Push`]).

mod compare;
mod keyholders;
mod persons;
mod window;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

pub use self::compare::{Difference, differences, loosenings};
pub use self::keyholders::{Join, KeyholderRule};
pub use self::persons::PersonRule;
pub use self::window::{Minute, Window};

/// Version of the file.
const VERSION: u32 = 1;

/// Longest policy: some thousand rules.
pub const POLICY_BYTES_MAX: usize = 256 << 10;

/// Most rules of a kind.
const RULES_MAX: usize = 4_096;

/// Longest time in which a second person may approve.
const LAPSE_MINUTES_MAX: u32 = 7 * 24 * 60;

/// Longest time in which a key has one epoch, ten years: who means never leaves it out.
const ROTATE_EVERY_DAYS_MAX: u32 = 3_650;

/// Longest administrative login.
const SESSION_MINUTES_MAX: u32 = 24 * 60;

/// A policy, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// 1.
    pub version: u32,
    /// Conditions of every push.
    #[serde(default)]
    pub push: PushRule,
    /// How often keys may be pushed to nodes that have none.
    #[serde(default)]
    pub budget: Budget,
    /// Images by name, as the image build describes them.
    #[serde(default, rename = "image")]
    pub images: Vec<ImageRule>,
    /// Conditions for nodes by name; the first that matches counts.
    #[serde(default, rename = "node")]
    pub nodes: Vec<NodeRule>,
    /// Conditions for volumes by label; all that match count.
    #[serde(default, rename = "volume")]
    pub volumes: Vec<VolumeRule>,
    /// Keyholders that may have the root from one that runs.
    #[serde(default, rename = "keyholder")]
    pub keyholders: Vec<KeyholderRule>,
    /// How many people it takes.
    #[serde(default)]
    pub quorum: Quorum,
    /// How people prove who they are.
    #[serde(default)]
    pub people: PeopleRule,
    /// Who may log in at the OpenID provider, and as what; every one that fits counts.
    #[serde(default, rename = "person")]
    pub persons: Vec<PersonRule>,
    /// How long the trail is kept.
    #[serde(default)]
    pub audit: AuditRule,
    /// How long keys stay as they are.
    #[serde(default)]
    pub rotation: RotationRule,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            version: VERSION,
            push: PushRule::default(),
            budget: Budget::default(),
            images: Vec::new(),
            nodes: Vec::new(),
            volumes: Vec::new(),
            keyholders: Vec::new(),
            quorum: Quorum::default(),
            people: PeopleRule::default(),
            persons: Vec::new(),
            audit: AuditRule::default(),
            rotation: RotationRule::default(),
        }
    }
}

/// After which returns of a node its keys are pushed without a person.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reboots {
    /// After any.
    #[default]
    Any,
    /// After those that it announced: it gave its keys up and signed that. Not after it vanished.
    Receipted,
    /// In its maintenance windows only.
    Maintenance,
    /// After none.
    Never,
}

/// What is asked of a node whose TPM nobody has approved, or that has none: what it says of itself is a claim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attestation {
    /// Nothing.
    #[default]
    Optional,
    /// A person's approval at every push.
    Approve,
    /// That it has one: no key without.
    Required,
}

/// Conditions of every push.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PushRule {
    /// Only to nodes that a `[[node]]` rule names.
    #[serde(default)]
    pub listed_nodes_only: bool,
    /// For nodes whose rule does not say.
    #[serde(default)]
    pub reboots: Reboots,
    /// Of nodes whose rule does not say.
    #[serde(default)]
    pub attestation: Attestation,
    /// Images that may hold keys: names of `[[image]]` tables, patterns of such names, or measurements (PCR 11, hex); any
    /// where empty.
    #[serde(default)]
    pub images: Vec<String>,
    /// Longest lease.
    #[serde(default)]
    pub lease_ms_max: Option<u64>,
}

/// How often keys may be pushed to nodes that have none. Past it a person has to approve.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Of one node.
    #[serde(default)]
    pub unseals_per_hour: Option<u32>,
    /// Of all together: whoever replays a whole site's boots runs into it.
    #[serde(default)]
    pub unseals_per_hour_all: Option<u32>,
    /// Of keyholders, by one that runs.
    #[serde(default)]
    pub joins_per_hour: Option<u32>,
}

/// An image: what a TPM's registers hold once it was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRule {
    /// Which image this is.
    pub name: String,
    /// What the firmware started, hex: the image itself and nothing before it.
    pub pcr4: String,
    /// The image's parts, hex.
    pub pcr11: String,
}

/// Conditions for nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRule {
    /// A name, or a pattern with `*`.
    pub name: String,
    /// Where these nodes stand.
    #[serde(default)]
    pub region: Option<String>,
    /// After which returns keys are pushed without a person.
    #[serde(default)]
    pub reboots: Option<Reboots>,
    /// What is asked where no approved TPM speaks for them.
    #[serde(default)]
    pub attestation: Option<Attestation>,
    /// Images that may hold keys; those of `[push]` where empty.
    #[serde(default)]
    pub images: Vec<String>,
    /// When keys are pushed; always where empty.
    #[serde(default)]
    pub hours: Vec<Window>,
    /// When a return is expected.
    #[serde(default)]
    pub maintenance: Vec<Window>,
}

/// Conditions for volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRule {
    /// A label, or a pattern with `*`.
    pub label: String,
    /// Regions whose nodes may hold its key; any where empty.
    #[serde(default)]
    pub regions: Vec<String>,
    /// Nodes that may hold its key, names or patterns; any where empty.
    #[serde(default)]
    pub nodes: Vec<String>,
    /// When its key is pushed; always where empty.
    #[serde(default)]
    pub hours: Vec<Window>,
    /// For how many days its key has one epoch at most.
    #[serde(default)]
    pub rotate_every_days: Option<u32>,
}

/// How many people it takes: one who asks, and the others who approve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quorum {
    /// Erasing a volume.
    #[serde(default = "one")]
    pub erase: u8,
    /// A policy that asks for less than the one before.
    #[serde(default = "one")]
    pub loosen: u8,
    /// Rolling a volume back over newer data, and promoting a replica.
    #[serde(default = "one")]
    pub overwrite: u8,
    /// Lifting a latch.
    #[serde(default = "one")]
    pub unlatch: u8,
    /// Forgetting somebody's second factor, and enrolling one once an officer has one.
    #[serde(default = "one")]
    pub people: u8,
    /// How long a request waits for approval.
    #[serde(default = "hour")]
    pub lapse_minutes: u32,
    /// A security officer alone may go on, with an alarm.
    #[serde(default)]
    pub break_glass: bool,
}

const fn one() -> u8 {
    1
}

const fn hour() -> u32 {
    60
}

impl Default for Quorum {
    fn default() -> Self {
        Self {
            erase: 1,
            loosen: 1,
            overwrite: 1,
            unlatch: 1,
            people: 1,
            lapse_minutes: hour(),
            break_glass: false,
        }
    }
}

/// Whether a certificate alone is enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecondFactor {
    /// For those who have not enrolled a second factor.
    #[default]
    Enrolled,
    /// For nobody: who has none enrols one first.
    Required,
}

/// How people prove who they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeopleRule {
    /// Whether a certificate alone is enough.
    #[serde(default)]
    pub second_factor: SecondFactor,
    /// How long a login is good.
    #[serde(default = "quarter")]
    pub session_minutes: u32,
    /// What an OpenID provider's word for how somebody logged in (`amr`, RFC 8176) has to have one of, to count as a second factor. None
    /// counts where empty.
    #[serde(default)]
    pub oidc_amr: Vec<String>,
    /// The same of its `acr`.
    #[serde(default)]
    pub oidc_acr: Vec<String>,
}

const fn quarter() -> u32 {
    15
}

impl Default for PeopleRule {
    fn default() -> Self {
        Self {
            second_factor: SecondFactor::default(),
            session_minutes: quarter(),
            oidc_amr: Vec::new(),
            oidc_acr: Vec::new(),
        }
    }
}

/// How long the trail is kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditRule {
    /// Days; for good where absent.
    #[serde(default)]
    pub keep_days: Option<u32>,
}

/// How long the keys of volumes stay as they are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RotationRule {
    /// For how many days a key has one epoch; until somebody asks for another, or it has encrypted 2^43 blocks, where absent.
    #[serde(default)]
    pub every_days: Option<u32>,
}

/// A policy that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{what}; {next_step}", line.map(|line| format!("line {line}: ")).unwrap_or_default())]
pub struct PolicyError {
    /// Where, counted from 1.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// How to put it right.
    pub next_step: &'static str,
}

fn wrong(what: impl Into<String>, next_step: &'static str) -> PolicyError {
    PolicyError { line: None, what: what.into(), next_step }
}

impl Policy {
    /// Reads and checks a file's text.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        if text.len() > POLICY_BYTES_MAX {
            return Err(wrong("the policy is longer than 256 KiB", "use patterns for names and labels"));
        }
        let policy: Self = toml::from_str(text).map_err(|error| PolicyError {
            line: error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1),
            what: error.message().lines().next().unwrap_or("this is no TOML").to_owned(),
            next_step: "POLICY.md explains each line; `nightlatch policy show --example` prints one",
        })?;
        policy.check()?;
        Ok(policy)
    }

    fn check(&self) -> Result<(), PolicyError> {
        if self.version != VERSION {
            return Err(wrong(
                format!("the policy is of version {}", self.version),
                "use the program that it was written for; this one reads version 1",
            ));
        }
        let rules = [
            self.nodes.len(),
            self.volumes.len(),
            self.images.len(),
            self.keyholders.len(),
            self.persons.len(),
        ];
        if rules.iter().any(|count| *count > RULES_MAX) {
            return Err(wrong("there are more than 4096 rules", "use patterns for names and labels"));
        }
        self.check_images()?;
        self.check_regions()?;
        self.check_keyholders()?;
        self.check_persons()?;
        let quorum = &self.quorum;
        let counts = [quorum.erase, quorum.loosen, quorum.overwrite, quorum.unlatch, quorum.people];
        if counts.iter().any(|count| !(1..=8).contains(count)) {
            return Err(wrong("a quorum is out of range", "give 1 to 8 people"));
        }
        if !(1..=LAPSE_MINUTES_MAX).contains(&quorum.lapse_minutes) {
            return Err(wrong("lapse_minutes is out of range", "give 1 minute to 7 days"));
        }
        if !(1..=SESSION_MINUTES_MAX).contains(&self.people.session_minutes) {
            return Err(wrong("session_minutes is out of range", "give 1 minute to 24 hours"));
        }
        if self.audit.keep_days == Some(0) {
            return Err(wrong("keep_days = 0 would keep no trail", "give a number of days, or leave it out"));
        }
        let of_volumes = self.volumes.iter().filter_map(|rule| rule.rotate_every_days);
        if self
            .rotation
            .every_days
            .into_iter()
            .chain(of_volumes)
            .any(|days| !(1..=ROTATE_EVERY_DAYS_MAX).contains(&days))
        {
            return Err(wrong(
                "a time after which keys are rotated is out of range",
                "give 1 to 3650 days, or leave it out",
            ));
        }
        Ok(())
    }

    /// An image that is named has to be described, and a description has to be one.
    fn check_images(&self) -> Result<(), PolicyError> {
        let is_measurement = |text: &str| hex::decode(text).is_ok_and(|bytes| bytes.len() == 32);
        let no_measurement = |text: &str| {
            wrong(
                format!("`{text}` is no measurement of an image"),
                "give the 64 hexadecimal digits that the image build prints",
            )
        };
        for image in &self.images {
            if let Some(text) = [&image.pcr4, &image.pcr11].into_iter().find(|text| !is_measurement(text)) {
                return Err(no_measurement(text));
            }
        }
        let mut names = BTreeSet::new();
        if let Some(twice) = self.images.iter().find(|image| !names.insert(&image.name)) {
            return Err(wrong(
                format!("two [[image]] tables are named {}", twice.name),
                "give each image a name of its own: a policy is compared with the one before by these names",
            ));
        }
        let wanted = self.push.images.iter().chain(self.nodes.iter().flat_map(|rule| &rule.images));
        for wanted in wanted.filter(|wanted| !is_measurement(wanted)) {
            if !self.images.iter().any(|image| matches(wanted, &image.name)) {
                return Err(wrong(
                    format!(
                        "`{wanted}` is neither a measurement of an image nor the name of an [[image]] table"
                    ),
                    "add the table that `nightlatch image verify` prints, or give 64 hexadecimal digits",
                ));
            }
        }
        Ok(())
    }

    /// A volume that wants a region that no node has would never be served.
    fn check_regions(&self) -> Result<(), PolicyError> {
        for rule in &self.volumes {
            let unknown = rule.regions.iter().find(|wanted| {
                !self.nodes.iter().any(|node| node.region.as_deref() == Some(wanted.as_str()))
            });
            if let Some(region) = unknown {
                return Err(wrong(
                    format!(
                        "volume {} is to be in region {region}, and no node rule has that region",
                        rule.label
                    ),
                    "give the nodes there their `region`, or correct the name",
                ));
            }
        }
        Ok(())
    }

    fn node_rule(&self, name: &str) -> Option<&NodeRule> {
        self.nodes.iter().find(|rule| matches(&rule.name, name))
    }

    /// Whether the node may hold the volume's key at all, whenever: what a renewal asks too.
    pub fn may_hold(&self, node: &str, machine: &Machine, volume: &str) -> Result<(), Refusal> {
        let rule = self.node_rule(node);
        if let Machine::Disproved { because, would_need } = machine {
            return Err(Refusal::lasting(format!("of {node}: {because}"), would_need));
        }
        if self.push.listed_nodes_only && rule.is_none() {
            return Err(Refusal::lasting(
                format!("no [[node]] rule names {node}"),
                "a rule for it in the policy",
            ));
        }
        if self.attestation_of(rule) == Attestation::Required && *machine == Machine::Claims {
            return Err(Refusal::lasting(
                format!("no approved TPM speaks for {node}, and what it says itself is a claim"),
                "a node with a TPM, approved with it (`nightlatch node approve`)",
            ));
        }
        self.judge_image(rule, node, machine)?;
        for limit in self.volumes.iter().filter(|limit| matches(&limit.label, volume)) {
            let region = rule.and_then(|rule| rule.region.as_deref());
            if !limit.regions.is_empty()
                && !limit.regions.iter().any(|wanted| Some(wanted.as_str()) == region)
            {
                let stands = region.map_or("in no region".to_owned(), |region| format!("in {region}"));
                return Err(Refusal::lasting(
                    format!("{node} stands {stands}, and {volume} belongs to {}", limit.regions.join(" or ")),
                    "a node there, or the region in the policy",
                ));
            }
            if !limit.nodes.is_empty() && !limit.nodes.iter().any(|allowed| matches(allowed, node)) {
                return Err(Refusal::lasting(
                    format!("{volume} may be on {} only, and not on {node}", limit.nodes.join(", ")),
                    "one of those nodes, or this one in the policy",
                ));
            }
        }
        Ok(())
    }

    /// Whether any key is rotated by schedule.
    pub(crate) fn rotates(&self) -> bool {
        self.rotation.every_days.is_some() || self.volumes.iter().any(|rule| rule.rotate_every_days.is_some())
    }

    /// For how many days the key of a volume has one epoch: the shortest time that anything says.
    pub(crate) fn rotate_every_days(&self, volume: &str) -> Option<u32> {
        let of_volume = self.volumes.iter().filter(|rule| matches(&rule.label, volume));
        of_volume.filter_map(|rule| rule.rotate_every_days).chain(self.rotation.every_days).min()
    }

    fn attestation_of(&self, rule: Option<&NodeRule>) -> Attestation {
        rule.and_then(|rule| rule.attestation).unwrap_or(self.push.attestation)
    }

    /// Whether the machine runs an image that may hold keys.
    fn judge_image(&self, rule: Option<&NodeRule>, node: &str, machine: &Machine) -> Result<(), Refusal> {
        let wanted = rule.map(|rule| &rule.images).filter(|images| !images.is_empty());
        let wanted = wanted.unwrap_or(&self.push.images);
        let Machine::Proves { boot_loader, image, is_as_approved } = machine else {
            // Who says it himself can say anything.
            return if wanted.is_empty() {
                Ok(())
            } else {
                Err(Refusal::lasting(
                    format!(
                        "no approved TPM says which image {node} runs, and {} may hold keys only",
                        wanted.join(", ")
                    ),
                    "one of those images on the node, and a TPM that it is approved with",
                ))
            };
        };
        let (boot_loader, image) = (hex::encode(boot_loader), hex::encode(image));
        if wanted.is_empty() {
            return if *is_as_approved {
                Ok(())
            } else {
                Err(Refusal::lasting(
                    format!(
                        "{node} runs another image than when it was approved (PCR 11 is {image}), and the policy names none"
                    ),
                    "a new approval (`nightlatch node approve`), or [[image]] tables and `images` in the policy",
                ))
            };
        }
        let is = |known: &str, found: &String| known.eq_ignore_ascii_case(found);
        let same_parts: Vec<_> = self.images.iter().filter(|known| is(&known.pcr11, &image)).collect();
        let running = same_parts.iter().find(|known| is(&known.pcr4, &boot_loader));
        // Whoever starts something else can extend PCR 11 as he likes, and cannot undo what the firmware put into PCR 4. A bare
        // measurement says nothing of that: it counts for the image that a person approved, or one that a table describes.
        if running.is_none()
            && (!same_parts.is_empty() || (wanted.iter().any(|wanted| is(wanted, &image)) && !is_as_approved))
        {
            return Err(Refusal::lasting(
                format!(
                    "the parts that {node} tells of are those of an image that is known (PCR 11), and what its firmware \
                     started is something else, or described by no [[image]] table (PCR 4 is {boot_loader})"
                ),
                "a look at what the machine starts from and whether Secure Boot is on",
            ));
        }
        let is_wanted = |wanted: &String| {
            is(wanted, &image) || running.is_some_and(|running| matches(wanted, &running.name))
        };
        if wanted.iter().any(is_wanted) {
            return Ok(());
        }
        match running {
            Some(running) => Err(Refusal::lasting(
                format!("{node} runs {}, and {} may hold keys only", running.name, wanted.join(", ")),
                "an update of the node to one of those images, or this one in the policy",
            )),
            None => Err(Refusal::lasting(
                format!("{node} runs an image that the policy does not know (PCR 11 is {image})"),
                "one of the images allowed on the node, or an [[image]] table for this one",
            )),
        }
    }

    /// Whether the key may be pushed now.
    pub fn judge(&self, push: &Push<'_>) -> Result<(), Refusal> {
        self.may_hold(push.node, push.machine, push.volume)?;
        let rule = self.node_rule(push.node);
        if let Some(most) = self.push.lease_ms_max.filter(|most| push.lease_ms > *most) {
            return Err(Refusal::lasting(
                format!(
                    "{} has a lease of {} ms, and {most} ms is the longest allowed",
                    push.node, push.lease_ms
                ),
                "a shorter lease (`nightlatch node change --lease-ms`)",
            ));
        }
        if self.attestation_of(rule) == Attestation::Approve && *push.machine == Machine::Claims {
            return Err(Refusal::approvable(
                format!("no approved TPM speaks for {}, and what it says itself is a claim", push.node),
                "a TPM that it is approved with",
            ));
        }
        let of_volume = self.volumes.iter().filter(|limit| matches(&limit.label, push.volume));
        let all_hours = rule.map(|rule| &rule.hours).into_iter().chain(of_volume.map(|limit| &limit.hours));
        for hours in all_hours.filter(|hours| !hours.is_empty()) {
            if !hours.iter().any(|window| window.contains(push.now)) {
                let said: Vec<_> = hours.iter().map(ToString::to_string).collect();
                return Err(Refusal::approvable(
                    format!("it is {} (UTC), and keys go there {} only", push.now, said.join(", ")),
                    "that time",
                ));
            }
        }
        self.judge_return(rule, push)?;
        self.judge_budget(push)
    }

    fn judge_return(&self, rule: Option<&NodeRule>, push: &Push<'_>) -> Result<(), Refusal> {
        let reboots = rule.and_then(|rule| rule.reboots).unwrap_or(self.push.reboots);
        let expected =
            rule.is_some_and(|rule| rule.maintenance.iter().any(|window| window.contains(push.now)));
        let node = push.node;
        let refused = |why: String, needed: &'static str| Err(Refusal::approvable(why, needed));
        match (push.came_back, reboots) {
            (CameBack::Holding, _) | (_, Reboots::Any) => Ok(()),
            (_, Reboots::Maintenance) if expected => Ok(()),
            (CameBack::Receipted | CameBack::First, Reboots::Receipted) => Ok(()),
            (CameBack::Vanished, Reboots::Receipted) => refused(
                format!("{node} vanished with its keys and came back without a receipt"),
                "a look at it",
            ),
            (_, Reboots::Maintenance) => refused(
                format!("{node} came back outside of its maintenance windows"),
                "one of those windows",
            ),
            (_, Reboots::Never) => refused(format!("{node} came back without a key"), "a look at it"),
        }
    }

    fn judge_budget(&self, push: &Push<'_>) -> Result<(), Refusal> {
        if push.came_back == CameBack::Holding {
            return Ok(());
        }
        let over = |used: u32, most: Option<u32>| most.filter(|most| used >= *most);
        if let Some(most) = over(push.unseals_of_node, self.budget.unseals_per_hour) {
            return Err(Refusal::approvable(
                format!(
                    "{} was given keys {} times within the hour, and {most} is the budget",
                    push.node, push.unseals_of_node
                ),
                "some patience",
            ));
        }
        if let Some(most) = over(push.unseals_of_all, self.budget.unseals_per_hour_all) {
            return Err(Refusal::approvable(
                format!(
                    "nodes were given keys {} times within the hour, and {most} is the budget",
                    push.unseals_of_all
                ),
                "some patience",
            ));
        }
        Ok(())
    }
}

/// How a node came to be without a key, or that it is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CameBack {
    /// It never had one, as far as is known.
    #[default]
    First,
    /// It has keys of the same run: this push adds one.
    Holding,
    /// It gave up what it had and signed that.
    Receipted,
    /// It had keys, and no receipt says where they went.
    Vanished,
}

/// What is known of a node's machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Machine {
    /// Nobody proves anything: what the node says itself is a claim.
    Claims,
    /// What the TPM that the node was approved with has signed, the rest being as it was approved.
    Proves {
        /// What the firmware started (PCR 4).
        boot_loader: [u8; 32],
        /// The image's parts (PCR 11).
        image: [u8; 32],
        /// Whether both are what they were when it was approved.
        is_as_approved: bool,
    },
    /// The node was approved with a TPM, and what came proves nothing or something else.
    Disproved {
        /// What does not hold.
        because: String,
        /// What would be needed.
        would_need: &'static str,
    },
}

/// What is known of a push.
#[derive(Clone, Copy, Debug)]
pub struct Push<'a> {
    /// The node's name.
    pub node: &'a str,
    /// The volume's label.
    pub volume: &'a str,
    /// What is known of its machine.
    pub machine: &'a Machine,
    /// Its lease.
    pub lease_ms: u64,
    /// How it came to be without a key.
    pub came_back: CameBack,
    /// How often it was given keys within the hour.
    pub unseals_of_node: u32,
    /// How often any node was.
    pub unseals_of_all: u32,
    /// Now, in UTC.
    pub now: Minute,
}

/// Why a key is not pushed, and what would be needed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "refused because {because}; would need {would_need}{}",
    if *approvable { ", or a person's approval (`nightlatch push`)" } else { "" }
)]
pub struct Refusal {
    /// Why.
    pub because: String,
    /// What would be needed.
    pub would_need: &'static str,
    /// Whether a person may decide otherwise for this once.
    pub approvable: bool,
}

impl Refusal {
    fn lasting(because: impl Into<String>, would_need: &'static str) -> Self {
        Self { because: because.into(), would_need, approvable: false }
    }

    fn approvable(because: impl Into<String>, would_need: &'static str) -> Self {
        Self { because: because.into(), would_need, approvable: true }
    }
}

/// Whether `text` is what the pattern says; `*` stands for anything.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// A policy to begin with, each line explained.
pub const EXAMPLE: &str = include_str!("policy/example.toml");

#[cfg(test)]
mod tests {
    use super::*;

    const WEDNESDAY_NOON: Minute = Minute { weekday: 2, minute: 12 * 60 };

    const NOTHING: Machine = Machine::Claims;

    fn push<'a>() -> Push<'a> {
        Push {
            node: "node-1",
            volume: "db",
            machine: &NOTHING,
            lease_ms: 30_000,
            came_back: CameBack::First,
            unseals_of_node: 0,
            unseals_of_all: 0,
            now: WEDNESDAY_NOON,
        }
    }

    fn refusal(policy: &str, push: &Push<'_>) -> String {
        Policy::parse(policy).unwrap().judge(push).unwrap_err().to_string()
    }

    #[test]
    fn without_conditions_everything_is_as_it_is_without_a_policy() {
        let policy = Policy::parse("version = 1\n").unwrap();
        assert_eq!(policy, Policy::default());
        for came_back in [CameBack::First, CameBack::Holding, CameBack::Receipted, CameBack::Vanished] {
            let push = Push { came_back, unseals_of_node: 1_000, unseals_of_all: 1_000, ..push() };
            assert_eq!(policy.judge(&push), Ok(()));
        }
    }

    #[test]
    fn each_condition_refuses_what_it_is_for_says_why_and_what_would_be_needed() {
        let image = "ab".repeat(32);
        let vanished = Push { came_back: CameBack::Vanished, ..push() };
        let receipted = Push { came_back: CameBack::Receipted, ..push() };
        let cases: &[(&str, Push<'_>, &str, bool)] = &[
            ("[push]\nlisted_nodes_only = true", push(), "no [[node]] rule names node-1", false),
            (
                &format!("[push]\nimages = [\"{image}\"]"),
                push(),
                "no approved TPM says which image node-1 runs",
                false,
            ),
            ("[push]\nattestation = \"required\"", push(), "what it says itself is a claim", false),
            ("[push]\nattestation = \"approve\"", push(), "what it says itself is a claim", true),
            ("[push]\nlease_ms_max = 20000", push(), "lease of 30000 ms", false),
            ("[push]\nreboots = \"receipted\"", vanished, "vanished with its keys", true),
            ("[push]\nreboots = \"maintenance\"", receipted, "outside of its maintenance", true),
            ("[push]\nreboots = \"never\"", receipted, "came back without a key", true),
            (
                "[[node]]\nname = \"node-*\"\nhours = [\"mon-fri 07:00-11:59\"]",
                push(),
                "it is wed 12:00 (UTC), and keys go there mon-fri 07:00-11:59 only",
                true,
            ),
            (
                "[[node]]\nname = \"node-2\"\nregion = \"eu\"\n[[volume]]\nlabel = \"d*\"\nregions = [\"eu\"]",
                push(),
                "stands in no region, and db belongs to eu",
                false,
            ),
            (
                "[[volume]]\nlabel = \"db\"\nnodes = [\"node-2\", \"x-*\"]",
                push(),
                "may be on node-2, x-* only",
                false,
            ),
            (
                "[budget]\nunseals_per_hour = 2",
                Push { unseals_of_node: 2, ..push() },
                "given keys 2 times within the hour",
                true,
            ),
            (
                "[budget]\nunseals_per_hour_all = 3",
                Push { unseals_of_all: 3, ..push() },
                "nodes were given keys 3 times",
                true,
            ),
        ];
        for (policy, push, why, approvable) in cases {
            let said = refusal(&format!("version = 1\n{policy}"), push);
            assert!(said.starts_with("refused because ") && said.contains(why), "{policy}: {said}");
            assert!(said.contains("; would need "), "{said}");
            assert_eq!(said.contains("a person's approval"), *approvable, "{said}");
        }
    }

    #[test]
    fn one_short_of_a_budget_and_inside_of_a_window_is_allowed() {
        let allowed = |policy: &str, push: &Push<'_>| {
            assert_eq!(
                Policy::parse(&format!("version = 1\n{policy}")).unwrap().judge(push),
                Ok(()),
                "{policy}"
            );
        };
        allowed("[budget]\nunseals_per_hour = 2", &Push { unseals_of_node: 1, ..push() });
        allowed(
            "[budget]\nunseals_per_hour = 2",
            &Push { unseals_of_node: 9, came_back: CameBack::Holding, ..push() },
        );
        allowed("[[node]]\nname = \"node-1\"\nhours = [\"wed 12:00-12:01\"]", &push());
        let windows =
            "[[node]]\nname = \"node-1\"\nreboots = \"maintenance\"\nmaintenance = [\"wed 11:00-13:00\"]";
        allowed(windows, &Push { came_back: CameBack::Vanished, ..push() });
        let image = [0xab; 32];
        let images = format!("[push]\nimages = [\"{}\"]", hex::encode(image));
        let proves = Machine::Proves { boot_loader: [1; 32], image, is_as_approved: true };
        allowed(&images, &Push { machine: &proves, ..push() });
        allowed("[push]\nattestation = \"required\"", &Push { machine: &proves, ..push() });
        allowed("[push]\nattestation = \"approve\"", &Push { machine: &proves, ..push() });
        allowed(
            "[[node]]\nname = \"node-*\"\nregion = \"eu\"\n[[volume]]\nlabel = \"db\"\nregions = [\"eu\"]",
            &push(),
        );
    }

    #[test]
    fn what_is_no_policy_is_refused_with_its_line() {
        let image = format!("[[image]]\nname = \"a\"\npcr4 = \"{0}\"\npcr11 = \"{0}\"\n", "00".repeat(32));
        let twice = format!("version = 1\n{image}{image}");
        for (text, line, what) in [
            ("version = 1\n[push]\nrebots = \"any\"\n", Some(3), "rebots"),
            ("version = 1\n[push]\nreboots = \"sometimes\"\n", Some(3), "sometimes"),
            ("version = 2\n", None, "version 2"),
            ("", None, "version"),
            ("version = 1\n[push]\nimages = [\"abc\"]\n", None, "abc"),
            ("version = 1\n[push]\nimages = [\"server-*\"]\n", None, "server-*"),
            ("version = 1\n[[image]]\nname = \"a\"\npcr4 = \"00\"\npcr11 = \"00\"\n", None, "no measurement"),
            (&twice, None, "two [[image]] tables are named a"),
            ("version = 1\n[quorum]\nerase = 0\n", None, "quorum"),
            ("version = 1\n[quorum]\nerase = 9\n", None, "quorum"),
            ("version = 1\n[quorum]\nlapse_minutes = 0\n", None, "lapse_minutes"),
            ("version = 1\n[people]\nsession_minutes = 1441\n", None, "session_minutes"),
            ("version = 1\n[audit]\nkeep_days = 0\n", None, "keep_days"),
            ("version = 1\n[[volume]]\nlabel = \"a\"\nregions = [\"mars\"]\n", None, "mars"),
            ("version = 1\n[[node]]\nname = \"a\"\nhours = [\"mon 25:00-26:00\"]\n", Some(4), "mon 25:00"),
        ] {
            let error = Policy::parse(text).unwrap_err();
            assert!(error.what.contains(what), "{text}: {error}");
            if line.is_some() {
                assert_eq!(error.line, line, "{text}: {error}");
            }
            assert!(!error.next_step.is_empty());
        }
        assert!(Policy::parse(&format!("version = 1\n#{}", "x".repeat(POLICY_BYTES_MAX))).is_err());
    }

    #[test]
    fn an_image_is_known_by_what_was_started_and_by_its_parts() {
        let image = |name: &str, pcr4: u8, pcr11: u8| {
            let (pcr4, pcr11) = (hex::encode([pcr4; 32]), hex::encode([pcr11; 32]));
            format!("[[image]]\nname = \"{name}\"\npcr4 = \"{pcr4}\"\npcr11 = \"{pcr11}\"\n")
        };
        let (old, new) = (image("server-6", 0x64, 0x6b), image("server-7", 0x74, 0x7b));
        let policy = format!("version = 1\n[push]\nimages = [\"server-7\"]\n{old}{new}");
        let judge = |boot_loader: u8, image: u8| {
            let boot_loader = [boot_loader; 32];
            let machine = Machine::Proves { boot_loader, image: [image; 32], is_as_approved: false };
            let push = Push { machine: &machine, ..push() };
            Policy::parse(&policy).unwrap().judge(&push).map_err(|refusal| refusal.to_string())
        };
        assert_eq!(judge(0x74, 0x7b), Ok(()));
        for (boot_loader, image, why) in [
            (0x64, 0x6b, "runs server-6, and server-7 may hold keys only; would need an update"),
            (0x99, 0x9b, "an image that the policy does not know (PCR 11 is 9b9b"),
            // A foreign kernel that extends PCR 11 by itself.
            (
                0x99,
                0x7b,
                "what its firmware started is something else, or described by no [[image]] table (PCR 4 is 9999",
            ),
            (0x64, 0x7b, "what its firmware started is something else"),
        ] {
            let said = judge(boot_loader, image).unwrap_err();
            assert!(said.contains(why), "{said}");
        }
        // Without a table, only the image that a person approved.
        let bare = format!("version = 1\n[push]\nimages = [\"{}\"]", "7b".repeat(32));
        for (policy, is_as_approved) in
            [(bare.as_str(), true), (&bare, false), ("version = 1", true), ("version = 1", false)]
        {
            let machine = Machine::Proves { boot_loader: [0x99; 32], image: [0x7b; 32], is_as_approved };
            let judged = Policy::parse(policy).unwrap().judge(&Push { machine: &machine, ..push() });
            assert_eq!(judged.is_ok(), is_as_approved, "{policy}: {judged:?}");
        }
    }

    #[test]
    fn what_a_tpm_disproves_no_policy_lets_through() {
        let machine = Machine::Disproved { because: "it is a copy".to_owned(), would_need: "the original" };
        let push = Push { machine: &machine, ..push() };
        let said = refusal("version = 1", &push);
        assert_eq!(said, "refused because of node-1: it is a copy; would need the original");
        assert!(Policy::default().may_hold("node-1", &machine, "db").is_err(), "nor a renewal");
    }

    #[test]
    fn the_example_is_a_policy() {
        let policy = Policy::parse(EXAMPLE).unwrap();
        assert!(policy.quorum.erase >= 2 && policy.people.second_factor == SecondFactor::Required);
    }

    #[test]
    fn a_star_stands_for_anything_and_nothing_else_does() {
        for (pattern, text, fits) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("*c", "abc", true),
            ("a*c", "abc", true),
            ("a*c", "ab", false),
            ("a*b*c", "a-b-b-c", true),
            ("aa*a", "aa", false),
            ("*", "", true),
            ("a.c", "abc", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }
}
