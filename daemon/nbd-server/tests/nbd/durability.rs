//! A flush covers every write that was answered before it on any connection, FUA covers its own; shown by cutting the
//! power.

use crate::rig::{MIB, Random, Rig};

const LEN: usize = 20_000;

#[test]
fn a_flush_on_one_connection_covers_the_writes_of_all() {
    let mut random = Random::seeded("flush and cut");
    for _ in 0..20 {
        let rig = Rig::new();
        let data = random.bytes(LEN);
        let mut writers = [rig.client(), rig.client(), rig.client()];
        for (index, writer) in (0..).zip(&mut writers) {
            writer.write(index * MIB + 77, &data, false).unwrap();
        }
        rig.client().flush().unwrap();
        // Not covered, and must not spoil what was.
        writers[0].write(77 + 3 * MIB, &data, false).unwrap();
        let rig = rig.power_cut(random.next());
        let mut read = vec![0; LEN];
        for index in 0..3 {
            rig.client().read(index * MIB + 77, &mut read).unwrap();
            assert!(read == data, "MiB {index}");
        }
    }
}

#[test]
fn a_durable_write_needs_no_flush() {
    let mut random = Random::seeded("fua and cut");
    for _ in 0..20 {
        let rig = Rig::new();
        let data = random.bytes(LEN);
        let mut client = rig.client();
        client.write(MIB - 5, &data, true).unwrap();
        client.trim(0, 4096, true).unwrap();
        let rig = rig.power_cut(random.next());
        let mut read = vec![0; LEN];
        rig.client().read(MIB - 5, &mut read).unwrap();
        assert!(read == data);
    }
}

#[test]
fn a_device_that_lies_about_flushes_is_found_out() {
    // The control: if this finds nothing, the two above find nothing.
    let mut random = Random::seeded("lying device");
    let mut lost = 0;
    for _ in 0..20 {
        let rig = Rig::new();
        rig.client().write(0, &[1; LEN], true).unwrap();
        rig.device.below().make_flush_a_noop();
        rig.client().write(0, &[2; LEN], true).unwrap();
        let rig = rig.power_cut(random.next());
        let mut read = vec![0; LEN];
        rig.client().read(0, &mut read).unwrap();
        lost += usize::from(read != [2; LEN]);
    }
    assert!(lost > 0, "20 cuts on a device that flushes nothing lost nothing");
}
