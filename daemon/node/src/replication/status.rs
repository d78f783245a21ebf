//! How far replication is: for status, metrics and alerts.

use std::collections::BTreeMap;
use std::time::SystemTime;

use admin::api;
use replication::{EpochName, State};
use units::{BootInstant, VolumeId};

use super::outgoing::Way;
use super::{Arrivals, Peer, lock};
use crate::boot_clock;
use crate::control::unix_seconds;
use crate::node::{Node, OpenPool};

impl Node {
    /// Every peer, and every replica here that a peer sends.
    pub(crate) fn replication_status(&self) -> api::Replication {
        let begun = self.replication.state.last_begun();
        let replicas = begun.into_iter().map(|(volume, key)| {
            let found = self.find_volume(volume);
            let newest = found.as_ref().and_then(|(open, _)| open.pool.last_snapshot(volume));
            api::ReplicaStatus {
                volume,
                is_replica: found.is_some_and(|(_, found)| found.info().replica),
                fence: key.fence,
                newest_snapshot: newest.map(|newest| newest.id),
                newest_epoch: newest.and_then(|newest| EpochName::read(newest.id)).map(|name| name.number),
                newest_unix_s: newest.map(|newest| newest.created_s),
                newest_age_s: self.replication.age_s(volume, |arrivals| arrivals.newest_at),
                unheard_s: self.replication.age_s(volume, |arrivals| arrivals.heard_at),
                is_expected: self.replication.may_be_sent(volume),
            }
        });
        let replicas = replicas.collect();
        api::Replication {
            peers: self.replication.peers.iter().map(|peer| self.peer(peer)).collect(),
            replicas,
        }
    }

    fn peer(&self, peer: &Peer) -> api::PeerStatus {
        let way = peer.outgoing.as_ref();
        let written = self.pools.iter().flat_map(|open| {
            open.pool
                .volumes()
                .into_iter()
                .filter(|info| !info.replica && info.fence.0 > 0)
                .map(|info| info.id)
        });
        let is_had = |volume: &VolumeId| peer.config.has(*volume);
        let volumes =
            way.map(|way| written.filter(is_had).map(|volume| self.sent(peer, way, volume)).collect());
        api::PeerStatus {
            name: peer.config.name.to_string(),
            address: peer.config.address.clone(),
            connected: way.is_some_and(|way| lock(&way.sender).is_connected()),
            trouble: way.and_then(|way| lock(&way.trouble).clone()),
            volumes: volumes.unwrap_or_default(),
        }
    }

    fn sent(&self, peer: &Peer, way: &Way, volume: VolumeId) -> api::SentStatus {
        let mut sent = api::SentStatus {
            volume,
            state: "waiting".to_owned(),
            trouble: None,
            lag_seconds: 0,
            lag_bytes: 0,
            lag_epochs: 0,
            acknowledged_epoch: None,
            acknowledged_s_ago: None,
            progress_percent: None,
            is_catching_up: false,
        };
        if !self.replication.config.may_be_at(volume, &peer.config) {
            sent.state = "refused".to_owned();
            sent.trouble = Some("the volume must not leave its place, and the peer is not there".to_owned());
            return sent;
        }
        let unsent = self.replication.unsent(volume);
        let progress = lock(&way.sender).progress(volume);
        let Some(progress) = progress else {
            if unsent.is_some() {
                (sent.state, sent.trouble) = ("stopped".to_owned(), unsent);
                self.tell_all_as_lag(&mut sent);
            }
            return sent;
        };
        let state = match progress.state {
            State::Away => "away",
            State::Asking => "asking",
            State::UpToDate => "up-to-date",
            State::Lacking => "waiting",
            State::Sending { .. } => "sending",
            State::Stopped(_) => "stopped",
        };
        // What fails again and again is told while it is tried again.
        let trouble = progress.trouble.map(|why| why.to_string());
        (sent.state, sent.trouble) = (state.to_owned(), trouble.or(unsent));
        if let State::Sending { at, sectors } = progress.state {
            sent.progress_percent = u8::try_from(at.0.saturating_mul(100) / sectors.max(1)).ok();
        }
        let now = boot_clock::now();
        let number = |snapshot| EpochName::read(snapshot).map(|name| name.number);
        sent.acknowledged_epoch =
            progress.acknowledged.map(|epoch| epoch.key.number).or(progress.common.and_then(number));
        sent.acknowledged_s_ago = progress.acknowledged.map(|epoch| now.ms_since(epoch.closed_at) / 1000);
        sent.is_catching_up = progress.is_catching_up;
        let Some((open, found)) = self.find_volume(volume) else { return sent };
        let common = progress.common.and_then(number);
        let written = found.written().0;
        let (has_changed, since, mark) = match lock(&self.replication.closed).get(&volume) {
            Some(closed) => (
                closed.has_changed(written),
                common.and_then(|common| closed.behind_since(common)),
                common.and_then(|common| closed.mark(common)),
            ),
            None => (true, None, None),
        };
        if !has_changed && progress.has_newest {
            return sent;
        }
        sent.lag_epochs = (progress.epochs_behind + usize::from(has_changed)).max(1);
        sent.lag_bytes = match mark {
            Some(mark) => written.saturating_sub(mark.written).saturating_mul(4096),
            // Of what was written in earlier runs nothing is counted: at most all of it.
            None => found.info().allocated.0,
        };
        // Of an epoch of an earlier run nobody knows what came after it: its own age is told.
        let since = since.filter(|_| mark.is_some());
        sent.lag_seconds =
            since.map_or_else(|| age_s(open, progress.common), |since| now.ms_since(since) / 1000);
        sent
    }

    /// Of a volume of which nothing is sent nobody knows how far a peer is: at most at its newest epoch, at least at nothing.
    fn tell_all_as_lag(&self, sent: &mut api::SentStatus) {
        let Some((open, found)) = self.find_volume(sent.volume) else { return };
        let of_volume = open.pool.snapshots().into_iter().filter(|snapshot| snapshot.volume == sent.volume);
        let newest =
            of_volume.filter_map(|snapshot| Some((EpochName::read(snapshot.id)?.number, snapshot.id)));
        sent.lag_epochs = 1;
        sent.lag_bytes = found.info().allocated.0;
        sent.lag_seconds = age_s(open, newest.max().map(|(_, id)| id)).max(1);
    }
}

impl super::Replication {
    /// How long ago something arrived for a volume, seconds; where it did not in this run, how long that is.
    fn age_s(&self, volume: VolumeId, at: impl Fn(&Arrivals) -> Option<BootInstant>) -> u64 {
        let at = lock(&self.arrivals).get(&volume).and_then(at);
        boot_clock::now().ms_since(at.unwrap_or(self.started_at)) / 1000
    }

    /// Whether there is a peer that may send a volume here.
    fn may_be_sent(&self, volume: VolumeId) -> bool {
        self.peers.iter().any(|peer| peer.config.receive && peer.config.has(volume))
    }

    /// What was refused of peers since the start, by its reason.
    pub(crate) fn refused(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.refused).clone()
    }
}

/// How old a snapshot is; how long the machine runs where there is none.
fn age_s(open: &OpenPool, snapshot: Option<VolumeId>) -> u64 {
    let taken = open.pool.snapshots().into_iter().find(|info| Some(info.id) == snapshot);
    match taken {
        Some(info) => unix_seconds(SystemTime::now()).saturating_sub(info.created_s),
        None => boot_clock::now().0 / 1_000_000_000,
    }
}
