//! Which keyholder dials which node: one at a time, written in the store; another takes over when that one falls silent.
//!
//! Two may think at once that a node is theirs: the one that a break in the network keeps from the store, and the one that took over.
//! That costs a session and no more: the node keeps the newest one, whoever is superseded waits for a look at the store before it
//! dials again, and what may be granted and renewed is decided by lease records, never by a link.
//!
//! Without sockets and clocks: what is seen in the store goes in, what is to be written there comes out. Silence is counted in beats
//! of this keyholder's own that reached the store: while nobody can write, nobody is thought dead.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use units::{BootInstant, NodeId};

use super::kv::Item;
use super::wire::{self, LinkValue, MemberValue, Named};

/// Own beats without one of another keyholder after which that one is taken for dead.
pub(crate) const DEAD_BEATS: u32 = 5;

/// How long a node may be out of reach before its link is handed to a keyholder that may reach it.
const HAND_OVER_MS_FIRST: u64 = 5_000;

/// The same of a node that nobody has reached for long.
const HAND_OVER_MS_MAX: u64 = 300_000;

/// Keyholders that one store may have: each looks at it several times a second.
pub(crate) const MEMBERS_MAX: usize = 16;

#[derive(Debug)]
struct Member {
    value: MemberValue,
    /// Own beats since it was last heard.
    silent_beats: u32,
}

#[derive(Clone, Copy, Debug)]
struct Trouble {
    since: BootInstant,
    patience_ms: u64,
}

/// A link that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) node: NodeId,
    pub(crate) link: LinkValue,
}

/// A keyholder, as people are shown it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemberEntry {
    pub(crate) name: String,
    pub(crate) value: MemberValue,
    pub(crate) lives: bool,
    pub(crate) nodes: usize,
}

/// What is known of keyholders and links.
#[derive(Debug)]
pub(crate) struct Links {
    me: String,
    incarnation: [u8; 16],
    members: BTreeMap<String, Member>,
    owners: BTreeMap<NodeId, LinkValue>,
    troubles: BTreeMap<NodeId, Trouble>,
}

impl Links {
    pub(crate) fn new(me: String, incarnation: [u8; 16]) -> Self {
        let (members, owners, troubles) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { me, incarnation, members, owners, troubles }
    }

    /// Takes in what was seen in the store.
    pub(crate) fn observe(&mut self, items: &[(Named, Item)]) {
        for (named, item) in items {
            match named {
                Named::Member(name) => self.observe_member(name, &item.value),
                Named::Link(node) => match wire::decode(&item.value) {
                    Ok(link) => drop(self.owners.insert(*node, link)),
                    // A later program's: whoever wrote it is let be.
                    Err(wire::Unreadable) => drop(self.owners.remove(node)),
                },
                _ => {}
            }
        }
    }

    fn observe_member(&mut self, name: &str, value: &[u8]) {
        let Ok(value) = wire::decode(value) else { return };
        if self.members.len() >= MEMBERS_MAX && !self.members.contains_key(name) {
            // Names never leave the store by themselves: one that is dead makes room for one that lives.
            let dead = self.members.iter().filter(|(_, member)| member.silent_beats >= DEAD_BEATS);
            let longest = dead.max_by_key(|(_, member)| member.silent_beats).map(|(name, _)| name.clone());
            longest.and_then(|name| self.members.remove(&name));
        }
        if self.members.len() < MEMBERS_MAX || self.members.contains_key(name) {
            self.members.insert(name.to_owned(), Member { value, silent_beats: 0 });
        }
    }

    /// A beat of this keyholder reached the store, after a look at it.
    pub(crate) fn on_beat(&mut self) {
        for member in self.members.values_mut() {
            member.silent_beats = member.silent_beats.saturating_add(1);
        }
    }

    /// A link was written.
    pub(crate) fn on_claimed(&mut self, claim: Claim) {
        self.owners.insert(claim.node, claim.link);
    }

    fn is_mine(&self, link: &LinkValue) -> bool {
        link.holder == self.me && link.incarnation == self.incarnation
    }

    /// Whether this keyholder is to dial the node.
    pub(crate) fn is_linked_here(&self, node: NodeId) -> bool {
        self.owners.get(&node).is_some_and(|link| self.is_mine(link))
    }

    /// Who dials the node.
    pub(crate) fn holder(&self, node: NodeId) -> Option<&str> {
        self.owners.get(&node).map(|link| link.holder.as_str())
    }

    fn lives(&self, name: &str, incarnation: [u8; 16]) -> bool {
        self.members.get(name).is_some_and(|member| {
            member.value.incarnation == incarnation
                && member.value.unsealed
                && member.silent_beats < DEAD_BEATS
        })
    }

    /// Keyholders that can dial, this one apart.
    fn others(&self) -> impl Iterator<Item = (&String, &Member)> {
        let lives = |member: &Member| member.value.unsealed && member.silent_beats < DEAD_BEATS;
        self.members.iter().filter(move |(name, member)| **name != self.me && lives(member))
    }

    /// Keyholders that have the root, and where they are asked for it.
    pub(crate) fn givers(&self) -> Vec<(String, String)> {
        self.others().map(|(name, member)| (name.clone(), member.value.address.clone())).collect()
    }

    /// What is to be written so that each of the nodes is dialled by somebody who can. `is_reached` tells of those linked here.
    pub(crate) fn decide(
        &mut self,
        nodes: &[NodeId],
        is_reached: impl Fn(NodeId) -> bool,
        now: BootInstant,
    ) -> Vec<Claim> {
        self.owners.retain(|node, _| nodes.contains(node));
        let mut claims = Vec::new();
        for node in nodes {
            let claim = match self.owners.get(node) {
                Some(link) if self.is_mine(link) => {
                    let reached = is_reached(*node);
                    self.hand_over_in_trouble(*node, reached, now)
                }
                Some(link) if self.lives(&link.holder, link.incarnation) => None,
                // Nobody's. All who live see the same, and the first of them takes it.
                _ => self.ranking(*node).first().filter(|first| **first == self.me).map(|_| self.own_link()),
            };
            claims.extend(claim.map(|link| Claim { node: *node, link }));
        }
        claims
    }

    fn own_link(&self) -> LinkValue {
        LinkValue { holder: self.me.clone(), incarnation: self.incarnation }
    }

    /// What takes the node to this keyholder, whoever has it.
    pub(crate) fn claim(&self, node: NodeId) -> Claim {
        Claim { node, link: self.own_link() }
    }

    fn hand_over_in_trouble(
        &mut self,
        node: NodeId,
        is_reached: bool,
        now: BootInstant,
    ) -> Option<LinkValue> {
        if is_reached {
            self.troubles.remove(&node);
            return None;
        }
        let new = Trouble { since: now, patience_ms: HAND_OVER_MS_FIRST };
        let trouble = *self.troubles.entry(node).or_insert(new);
        if now.ms_since(trouble.since) < trouble.patience_ms {
            return None;
        }
        // It comes back here when nobody else reaches it either, and stays longer each time.
        let patience_ms = trouble.patience_ms.saturating_mul(2).min(HAND_OVER_MS_MAX);
        self.troubles.insert(node, Trouble { since: now, patience_ms });
        self.next_after_me(node)
    }

    /// What gives a node away: to the next of those that live. `None` where there is nobody.
    pub(crate) fn give_away(&self, node: NodeId) -> Option<Claim> {
        Some(Claim { node, link: self.next_after_me(node)? })
    }

    fn next_after_me(&self, node: NodeId) -> Option<LinkValue> {
        let ranking = self.ranking(node);
        let at = ranking.iter().position(|name| *name == self.me)?;
        let next = ranking.iter().cycle().skip(at + 1).take(ranking.len()).find(|name| **name != self.me);
        let member = self.members.get(*next?)?;
        Some(LinkValue { holder: (*next?).to_owned(), incarnation: member.value.incarnation })
    }

    /// Those that can dial, in an order that differs from node to node, so that the nodes of one that died go to all others.
    fn ranking(&self, node: NodeId) -> Vec<&str> {
        let mut names: Vec<_> = self.others().map(|(name, _)| name.as_str()).collect();
        names.push(&self.me);
        names.sort_by_cached_key(|name| Sha256::digest([node.0.as_slice(), name.as_bytes()].concat()));
        names
    }

    /// Every keyholder, as people are shown it.
    pub(crate) fn members(&self, own: &MemberValue) -> Vec<MemberEntry> {
        let count = |name: &str| self.owners.values().filter(|link| link.holder == name).count();
        let entry = |name: &str, value: &MemberValue, lives| MemberEntry {
            name: name.to_owned(),
            value: value.clone(),
            lives,
            nodes: count(name),
        };
        let others = self.members.iter().filter(|(name, _)| **name != self.me);
        let mut entries: Vec<_> = others
            .map(|(name, member)| entry(name, &member.value, member.silent_beats < DEAD_BEATS))
            .collect();
        entries.push(entry(&self.me, own, true));
        entries.sort_by(|left, right| left.name.cmp(&right.name));
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: BootInstant = BootInstant(1_000_000_000);

    fn nodes() -> Vec<NodeId> {
        (0..32).map(|number| NodeId([number; 16])).collect()
    }

    fn member(name: &str, beat: u64, unsealed: bool) -> (Named, Item) {
        let value = MemberValue {
            incarnation: [name.as_bytes()[0]; 16],
            beat,
            unsealed,
            address: String::new(),
            version: String::new(),
        };
        let item = Item { name: wire::member_name(name), value: wire::encode(&value), revision: beat };
        (Named::Member(name.to_owned()), item)
    }

    fn links(me: &str) -> Links {
        Links::new(me.to_owned(), [me.as_bytes()[0]; 16])
    }

    fn decide(links: &mut Links, reached: bool, now: BootInstant) -> Vec<Claim> {
        links.decide(&nodes(), |_| reached, now)
    }

    #[test]
    fn one_more_name_than_there_is_room_for_takes_the_place_of_one_that_is_dead() {
        let mut links = links("a");
        let names: Vec<String> = (0..MEMBERS_MAX).map(|number| format!("k{number}")).collect();
        names.iter().for_each(|name| links.observe(&[member(name, 1, true)]));
        let is_seen = |links: &Links, name: &str| links.members.contains_key(name);
        links.observe(&[member("new", 1, true)]);
        assert!(!is_seen(&links, "new"), "all of them live");
        for beat in 2..2 + u64::from(DEAD_BEATS) {
            links.on_beat();
            names[1..].iter().for_each(|name| links.observe(&[member(name, beat, true)]));
        }
        links.observe(&[member("new", 2, true)]);
        assert!(is_seen(&links, "new") && !is_seen(&links, "k0"));
        assert!(names[1..].iter().all(|name| is_seen(&links, name)));
    }

    /// Three that live.
    fn three() -> [Links; 3] {
        let mut three = ["a", "b", "c"].map(links);
        let items = ["a", "b", "c"].map(|name| member(name, 1, true));
        three.iter_mut().for_each(|links| links.observe(&items));
        three
    }

    #[test]
    fn each_node_is_claimed_by_one_and_none_by_two() {
        let mut claimed: Vec<NodeId> = Vec::new();
        let mut counts = Vec::new();
        for links in &mut three() {
            let claims = decide(links, true, NOW);
            counts.push(claims.len());
            claimed.extend(claims.iter().map(|claim| claim.node));
        }
        claimed.sort();
        assert_eq!(claimed, nodes());
        assert!(counts.iter().all(|count| *count > 2), "unevenly shared: {counts:?}");
    }

    #[test]
    fn the_nodes_of_a_silent_keyholder_are_taken_over_and_of_a_living_one_not() {
        let [mut a, mut b, _] = three();
        for claim in decide(&mut a, true, NOW) {
            b.on_claimed(claim);
        }
        let of_a: Vec<NodeId> = b.owners.keys().copied().collect();
        let takes = |b: &mut Links| {
            decide(b, true, NOW).into_iter().filter(|claim| of_a.contains(&claim.node)).count()
        };
        for beat in 1..DEAD_BEATS {
            b.on_beat();
            b.observe(&[member("c", u64::from(beat) + 1, true)]);
            assert_eq!(takes(&mut b), 0, "after {beat} beats");
        }
        // Heard again: counted from the beginning.
        b.observe(&[member("a", 2, true)]);
        b.on_beat();
        assert_eq!(takes(&mut b), 0);
        for _ in 1..DEAD_BEATS {
            b.on_beat();
            b.observe(&[member("c", 9, true)]);
        }
        assert!(takes(&mut b) > 0);
    }

    #[test]
    fn nobody_is_dead_while_nobody_can_write() {
        let [_, mut b, _] = three();
        b.owners = nodes()
            .iter()
            .map(|node| (*node, LinkValue { holder: "a".into(), incarnation: [b'a'; 16] }))
            .collect();
        for _ in 0..100 {
            assert!(decide(&mut b, true, NOW).is_empty());
        }
    }

    #[test]
    fn the_nodes_of_a_sealed_holder_are_taken_over_and_a_restarted_one_takes_its_own_again() {
        let [mut a, mut b, _] = three();
        decide(&mut a, true, NOW).into_iter().for_each(|claim| b.on_claimed(claim));
        let of_a: Vec<NodeId> = b.owners.keys().copied().collect();
        let takes = |links: &mut Links| {
            decide(links, true, NOW).into_iter().filter(|claim| of_a.contains(&claim.node)).count()
        };
        assert_eq!(takes(&mut b), 0);
        b.observe(&[member("a", 2, false)]);
        assert!(takes(&mut b) > 0);

        let (named, mut item) = member("a", 2, true);
        let again = MemberValue { incarnation: [0; 16], ..wire::decode(&item.value).unwrap() };
        item.value = wire::encode(&again);
        b.observe(&[(named, item)]);
        assert_eq!(takes(&mut b), 0, "its next run is first with them, and lives");
        let mut restarted = Links::new("a".to_owned(), [0; 16]);
        restarted.observe(&[member("b", 1, true), member("c", 1, true)]);
        for (node, link) in b.owners.clone() {
            restarted.on_claimed(Claim { node, link });
        }
        assert_eq!(takes(&mut restarted), of_a.len());
    }

    #[test]
    fn a_node_out_of_reach_goes_round_ever_more_slowly() {
        let [mut a, ..] = three();
        let node = NodeId([1; 16]);
        let own = a.claim(node);
        a.on_claimed(own.clone());
        let mut now = NOW;
        let mut waits = Vec::new();
        for _ in 0..3 {
            let begun = now;
            let claim = loop {
                now = now.saturating_add_ms(100);
                if let Some(claim) = a.decide(&[node], |_| false, now).pop() {
                    break claim;
                }
            };
            assert_ne!(claim.link.holder, "a");
            waits.push(now.ms_since(begun));
            a.on_claimed(claim);
            assert!(!a.is_linked_here(node));
            a.on_claimed(own.clone());
        }
        assert!(waits.windows(2).all(|pair| pair[1] > pair[0]), "{waits:?}");
        // Reached: patience is as at first.
        a.decide(&[node], |_| true, now);
        assert!(a.troubles.is_empty());
    }

    #[test]
    fn alone_there_is_nobody_to_hand_a_node_to() {
        let mut a = links("a");
        a.observe(&[member("a", 1, true)]);
        let node = NodeId([1; 16]);
        assert_eq!(a.give_away(node), None);
        a.on_claimed(a.claim(node));
        assert!(a.decide(&[node], |_| false, NOW.saturating_add_ms(HAND_OVER_MS_MAX)).is_empty());
        assert!(a.decide(&[node], |_| false, NOW.saturating_add_ms(3 * HAND_OVER_MS_MAX)).is_empty());
        assert!(a.is_linked_here(node));
    }
}
