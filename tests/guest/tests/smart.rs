//! Disks are asked how they fare: an NVMe and an ATA disk, as QEMU emulates them, by the kernel's own drivers.

use std::path::Path;

use guest::Guest;
use harness::process::program;
use health::{AtaSmart, Capture, NvmeSmart, Page, SelfVerdict};

#[test]
fn an_nvme_and_an_ata_disk_are_asked_and_what_they_answer_is_left_in_the_guest() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let disk = |name: &str| {
        let path = folder.path().join(name);
        std::fs::File::create(&path).and_then(|file| file.set_len(64 << 20)).expect("a disk");
        format!("file={},format=raw,if=none,id={name}", path.display())
    };
    let machine = ["nvme", "ahci", "sd_mod"].into_iter().fold(Guest::builder(), guest::Builder::module);
    let arguments = [
        "-drive".to_owned(),
        disk("first"),
        "-device".to_owned(),
        "nvme,drive=first,serial=NV1".to_owned(),
        "-drive".to_owned(),
        disk("second"),
        "-device".to_owned(),
        "ide-hd,drive=second,bus=ide.0,serial=AT2".to_owned(),
    ];
    let machine = arguments.iter().fold(machine, |machine, argument| machine.argument(argument));
    let mut guest =
        machine.program(&program("nightlatch-smart"), Path::new("/usr/bin/nightlatch-smart")).boot();
    guest.run("dd if=/dev/zero of=/dev/nvme0n1 bs=1M count=8 && sync").expect_success();
    let said = guest.run("mkdir /run/smart && nightlatch-smart --output /run/smart && ls /run/smart");
    println!("{}", said.stderr);
    assert_eq!(said.expect_success().split_whitespace().collect::<Vec<_>>(), ["nvme0n1.smart", "sda.smart"]);
    let mut capture = |name: &str| {
        let hex = guest.run(&format!("hexdump -ve '1/1 \"%02x\"' /run/smart/{name}")).expect_success();
        Capture::parse(&hex::decode(hex.trim()).expect("hexadecimal digits")).expect("a capture")
    };
    let nvme = capture("nvme0n1.smart");
    let Page::Nvme(page) = &nvme.page else { panic!("{nvme:?}") };
    let smart = NvmeSmart::parse(&**page).expect("a page");
    assert!(nvme.taken.0 > 0 && smart.critical_warning == 0, "{smart:?}");
    assert!(smart.celsius.is_some_and(|celsius| (20..80).contains(&celsius)), "{smart:?}");
    assert!(smart.host_write_commands > 0 && smart.data_units_written > 0, "{smart:?}");
    let ata = capture("sda.smart");
    assert_eq!(ata.verdict, SelfVerdict::Passed);
    let Page::Ata { data, thresholds } = &ata.page else { panic!("{ata:?}") };
    let smart = AtaSmart::parse(&**data, &**thresholds).expect("pages that add up");
    assert!(smart.attribute(9).is_some() && smart.failing().next().is_none(), "{smart:?}");
}
