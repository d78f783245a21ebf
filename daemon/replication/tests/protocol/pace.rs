//! How fast it goes, and how much is on its way at once.

use replication::{Portion, Reason, Sender, SenderEffect, SenderLimits};
use units::{BootInstant, Fence, Lba, SectorCount, VolumeId};

use crate::support::{GENERATION, NOW, PRIMARY, REPLICA, VOLUME, answered, epoch, manifest, one, said};

const MIB: u64 = 1 << 20;

/// A sender that is in the middle of an endless epoch of each of these volumes, and the session's receiver.
fn sending(volumes: &[VolumeId], limits: SenderLimits) -> (Sender, replication::Receiver) {
    let mut sender = Sender::new(PRIMARY, REPLICA, limits, NOW);
    let mut receiver = receiver_of(volumes);
    sender.on_connected(NOW);
    receiver.on_frame(one(&said(&mut sender).0)).unwrap();
    sender.on_frame(NOW, one(&answered(&mut receiver).0)).unwrap();
    for volume in volumes {
        sender.set_writer(*volume, Fence(7), GENERATION);
        sender.close_epoch(*volume, epoch(1));
        receiver.on_frame(one(&said(&mut sender).0)).unwrap();
        let local = replication::Local { role: replication::Role::Absent, newest: None, receiving: None };
        receiver.on_local(*volume, Ok(local));
        sender.on_frame(NOW, one(&answered(&mut receiver).0)).unwrap();
        let manifest =
            replication::Manifest { volume: *volume, sectors: SectorCount(1 << 30), ..manifest(1, None) };
        sender.on_manifest(*volume, Ok(manifest));
        let (frames, _) = said(&mut sender);
        receiver.on_frame(one(&frames)).unwrap();
    }
    // All begin at once.
    for volume in volumes {
        receiver.on_begun(*volume, Ok(Lba(0)));
    }
    for frame in answered(&mut receiver).0 {
        sender.on_frame(NOW, &frame[replication::PREFIX_BYTES..]).unwrap();
    }
    (sender, receiver)
}

fn receiver_of(volumes: &[VolumeId]) -> replication::Receiver {
    let allowed = replication::Allowed::These(volumes.iter().copied().collect());
    let params = replication::ReceiverParams {
        node: REPLICA,
        peer: PRIMARY,
        allowed,
        session: crate::support::SESSION,
    };
    replication::Receiver::new(params)
}

#[test]
fn a_rate_is_reached_though_answers_come_in_between() {
    let rate = 10 * MIB;
    let limits = SenderLimits { bytes_per_s: Some(rate), window_bytes: u64::MAX, ..SenderLimits::default() };
    let (mut sender, mut receiver) = sending(&[VOLUME], limits);
    let mut sent = 0;
    for tick in 1..=100 {
        let at = |ms: u64| NOW.saturating_add_ms(ms);
        // An answer comes a moment before each tick.
        let alive = receiver.alive();
        sender.on_frame(at(tick * 100 - 1), &alive[replication::PREFIX_BYTES..]).unwrap();
        sender.on_time(at(tick * 100)).unwrap();
        while let Some(effect) = sender.poll() {
            if let SenderEffect::ReadPortion { manifest, from } = effect {
                let portion = Portion { bytes: vec![0; 1 << 18], next: Lba(from.0 + 64) };
                sent += portion.bytes.len() as u64;
                sender.on_portion(VOLUME, manifest.snapshot, from, Ok(portion));
            }
        }
    }
    assert!(
        sent * 100 >= 10 * rate * 95 && sent <= 10 * rate + MIB,
        "{sent} bytes in 10 s at {rate} a second"
    );
}

#[test]
fn the_window_is_the_peers_and_volumes_are_read_in_turn() {
    let volumes: Vec<_> = (0..20).map(|n| VolumeId([n + 1; 16])).collect();
    let limits = SenderLimits::default();
    let (mut sender, _) = sending(&volumes, limits);
    let mut in_flight = 0;
    let mut turns = Vec::new();
    loop {
        let (_, asked) = said(&mut sender);
        let reads: Vec<_> = asked
            .into_iter()
            .filter_map(|effect| match effect {
                SenderEffect::ReadPortion { manifest, from } => Some((manifest, from)),
                _ => None,
            })
            .collect();
        assert!(reads.len() <= 1, "{} portions are read at once", reads.len());
        let Some((manifest, from)) = reads.into_iter().next() else { break };
        turns.push(manifest.volume);
        let portion = Portion { bytes: vec![0; 1 << 20], next: Lba(from.0 + 256) };
        in_flight += MIB;
        sender.on_portion(manifest.volume, manifest.snapshot, from, Ok(portion));
    }
    assert!(in_flight <= limits.window_bytes + MIB, "{in_flight} bytes on their way");
    assert_eq!(turns, volumes[..turns.len()]);
    let told: u64 = volumes.iter().map(|volume| sender.progress(*volume).unwrap().in_flight_bytes).sum();
    assert_eq!(told, in_flight);
}

#[test]
fn one_volume_that_stops_holds_up_no_other() {
    let volumes = [VolumeId([1; 16]), VolumeId([2; 16])];
    let (mut sender, mut receiver) = sending(&volumes, SenderLimits::default());
    let (_, asked) = said(&mut sender);
    assert!(
        matches!(&asked[..], [SenderEffect::ReadPortion { manifest, .. }] if manifest.volume == volumes[0])
    );
    receiver.on_took(volumes[0], Err(Reason::NoSpace));
    for frame in answered(&mut receiver).0 {
        sender.on_frame(NOW, &frame[replication::PREFIX_BYTES..]).unwrap();
    }
    let (_, asked) = said(&mut sender);
    let reads_second = |effect: &SenderEffect| matches!(effect, SenderEffect::ReadPortion { manifest, .. } if manifest.volume == volumes[1]);
    assert!(asked.iter().any(reads_second), "{asked:?}");
}

#[test]
fn silence_is_judged_by_what_was_read() {
    let (mut sender, mut receiver) = sending(&[VOLUME], SenderLimits::default());
    let late: BootInstant = NOW.saturating_add_ms(16_000);
    // The task was at it for longer than a silence may last, and the answer lies there.
    sender.on_frame(late, &receiver.alive()[replication::PREFIX_BYTES..]).unwrap();
    sender.on_time(late).unwrap();
    // Or it has not even asked: it does, and the peer has as long as ever to answer.
    let later = late.saturating_add_ms(16_000);
    sender.on_time(later).unwrap();
    let asks = |frame: &Vec<u8>| frame[5] == replication::Kind::Alive.byte();
    assert!(said(&mut sender).0.iter().any(asks));
    for second in 1..=15 {
        sender.on_time(later.saturating_add_ms(second * 1_000)).unwrap();
    }
    assert!(sender.on_time(later.saturating_add_ms(15_001)).is_err());
}
