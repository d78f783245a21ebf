//! The machine itself: it boots, runs commands, reaches a disk, and keeps what is said about memory.

use guest::{Format, Guest};

#[test]
fn a_guest_boots_runs_commands_and_has_its_disk_and_modules_in_the_guest() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let disk = folder.path().join("disk");
    std::fs::File::create(&disk).and_then(|file| file.set_len(64 << 20)).expect("a disk");
    let mut guest = Guest::builder().module("loop").drive(&disk, Format::Raw).boot();
    assert_eq!(guest.run("cat /sys/block/vda/size").expect_success().trim(), "131072");
    guest.run("printf nightlatch | dd of=/dev/vda bs=512 conv=sync 2>/dev/null && sync").expect_success();
    assert!(guest.run("cat /proc/modules").expect_success().contains("loop"));
    let refused = guest.run("echo out; echo err >&2; exit 7");
    assert_eq!((refused.code, refused.stdout.as_str(), refused.stderr.as_str()), (7, "out\n", "err\n"));
    guest.run("(sleep 1; poweroff -f) > /dev/null 2>&1 &").expect_success();
    assert!(guest.process().wait_end(std::time::Duration::from_secs(60)).success());
    let written = std::fs::read(&disk).expect("the disk");
    assert!(written.starts_with(b"nightlatch"), "what the guest wrote is on its disk");
}
