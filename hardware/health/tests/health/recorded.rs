//! What each source makes of the recorded machine.

use std::fs;

use health::{
    Board, Boards, Bus, Code, DiskState, Inventory, Judge, LocateError, Readings, Warning, controllers,
    disks, disks_below, interfaces, light_of, lights, set_light, temperatures,
};
use units::BootInstant;

use crate::tree::Machine;

/// A second after the older capture was taken.
const NOW: BootInstant = BootInstant(1_235_000_000_000);

#[test]
fn disks_are_those_that_are_there_with_what_they_said() {
    let machine = Machine::new();
    let found = disks(&machine.tree());
    assert_eq!(found.iter().map(|disk| disk.name.as_str()).collect::<Vec<_>>(), ["sda", "nvme0n1"]);
    let [ata, nvme] = &found[..] else { panic!("{found:?}") };
    assert_eq!(
        (ata.bus, ata.serial.as_deref(), ata.firmware.as_deref()),
        (Bus::Ata, Some("SP-1"), Some("AB1"))
    );
    assert_eq!((ata.rotational, ata.size_bytes), (true, 7_814_037_168 * 512));
    assert_eq!(
        (nvme.bus, nvme.model.as_deref(), nvme.serial.as_deref()),
        (Bus::Nvme, Some("Example 9000"), Some("NV123"))
    );
    let captures = machine.roots().captures;
    let DiskState::Read { asked_boot_ns, health } = nvme.state(&captures) else { panic!("{nvme:?}") };
    assert_eq!(asked_boot_ns, BootInstant(1_234_567_890_123));
    assert_eq!(health.warnings, [Warning::Spare, Warning::Failing].into());
    assert_eq!((health.media_errors, health.written_bytes), (Some(9_000_027), Some(2_000_006 * 512_000)));
    let DiskState::Read { health, .. } = ata.state(&captures) else { panic!("{ata:?}") };
    assert_eq!(health.warnings, [Warning::Failing].into());
    assert_eq!((health.reallocated_sectors, health.pending_sectors), (Some(1288), Some(8)));
    assert_eq!((health.power_on_hours, health.media_errors), (Some(26_543), Some(2)));
}

#[test]
fn a_capture_that_is_missing_garbled_or_newer_is_told_apart() {
    let machine = Machine::new();
    let state = || disks(&machine.tree())[0].state(&machine.roots().captures);
    let path = machine.captures().join("sda.smart");
    let mut bytes = fs::read(&path).unwrap();
    bytes[8] = 2;
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(state(), DiskState::Unreadable { why } if why.contains("version 2")));
    bytes[8] = 1;
    bytes[100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(state(), DiskState::Unreadable { why } if why.contains("add up")));
    fs::remove_file(&path).unwrap();
    assert_eq!(state(), DiskState::NotAsked);
}

#[test]
fn what_a_block_device_is_made_of_is_followed_to_its_disks() {
    let machine = Machine::new();
    let below = |major, minor| disks_below(&machine.tree(), major, minor).into_iter().collect::<Vec<_>>();
    assert_eq!(below(8, 0), ["sda"]);
    assert_eq!(below(259, 1), ["nvme0n1"], "a partition's disk");
    assert_eq!(below(9, 0), ["nvme0n1", "sda"], "RAID over a disk and a partition");
    assert_eq!(below(7, 0), [""; 0]);
}

#[test]
fn a_stack_that_leads_to_itself_ends() {
    let machine = Machine::new();
    let slaves = machine.sys().join("devices/pci0/0000:02:00.0/ata3/host2/target/2:0:0:0/block/sda/slaves");
    fs::create_dir(&slaves).unwrap();
    std::os::unix::fs::symlink(machine.sys().join("devices/virtual/block/md0"), slaves.join("md0")).unwrap();
    assert_eq!(disks_below(&machine.tree(), 9, 0).into_iter().collect::<Vec<_>>(), ["nvme0n1"]);
}

#[test]
fn temperatures_have_a_name_each_and_no_limits_that_are_none() {
    let found = temperatures(&Machine::new().tree());
    let names: Vec<&str> = found.iter().map(|read| read.sensor.as_str()).collect();
    assert_eq!(
        names,
        ["nvme-nvme0/Composite", "nct6798-hwmon1/SYSTIN", "nct6798-hwmon1/temp2", "nct6798-hwmon1/temp10"]
    );
    let (nvme, unconnected) = (&found[0], &found[2]);
    assert_eq!(
        (nvme.millicelsius, nvme.max_millicelsius),
        (Some(41_850), None),
        "a limit of 65 thousand degrees"
    );
    assert_eq!(nvme.critical_millicelsius, Some(84_850));
    assert_eq!(unconnected.millicelsius, None, "128 degrees below zero");
}

#[test]
fn memory_and_links_are_read() {
    let machine = Machine::new();
    let memory = controllers(&machine.tree());
    assert_eq!((memory.len(), memory[0].corrected, memory[0].uncorrected), (1, 7, 1));
    let dimm = &memory[0].dimms[0];
    assert_eq!((dimm.label.as_deref(), dimm.size_mib, dimm.uncorrected), (Some("P0_DIMM_A1"), 32_768, 1));
    let links = interfaces(&machine.tree());
    assert_eq!(links.iter().map(|link| link.name.as_str()).collect::<Vec<_>>(), ["eth0", "eth1"]);
    let (up, down) = (&links[0], &links[1]);
    assert!(up.physical && up.enabled && up.up && !down.up && !down.enabled && down.physical);
    assert_eq!((up.speed_mbit, up.full_duplex, up.receive_errors), (Some(25_000), Some(true), 4));
    assert_eq!((down.speed_mbit, down.full_duplex), (None, None));
}

#[test]
fn the_machine_as_it_is_has_just_these_findings() {
    let machine = Machine::new();
    let readings = Readings::take(&machine.roots());
    let found = Judge::default().findings(NOW, &readings, None);
    let found: Vec<(Code, &str)> =
        found.iter().map(|finding| (finding.code, finding.subject.as_str())).collect();
    assert_eq!(
        found,
        [
            (Code::DiskFailing, "nvme0n1"),
            (Code::DiskFailing, "sda"),
            (Code::DiskSpare, "nvme0n1"),
            (Code::DiskWear, "nvme0n1"),
            (Code::DiskPending, "sda"),
            (Code::Warm, "nct6798-hwmon1/SYSTIN"),
            (Code::MemoryUncorrected, "mc0"),
        ]
    );
}

#[test]
fn a_disk_is_lit_by_its_slot_its_pcie_port_or_the_boards_word() {
    let machine = Machine::new();
    let sys = machine.tree();
    let profile =
        "format = 1\nname = \"b\"\n[[light]]\nled = \"tray:locate\"\nport = \"ata3\"\nmeans = \"tray\"\n";
    let board = Board::parse(profile, "b").unwrap();
    let written = |path: &str| fs::read_to_string(machine.sys().join(path)).unwrap();
    let slot = light_of(&sys, "sda", None).unwrap();
    assert_eq!(slot.is_on(&sys), Some(false));
    set_light(&sys, &slot, true).unwrap();
    assert_eq!(slot.is_on(&sys), Some(true));
    assert!(written("class/enclosure/5:0:0:0/Slot 02/locate").starts_with('1'));
    assert!(written("class/enclosure/5:0:0:0/Slot 01/locate").starts_with('0'));
    let pcie = light_of(&sys, "nvme0n1", None).unwrap();
    set_light(&sys, &pcie, true).unwrap();
    assert!(written("class/leds/0000:01:00.0:enclosure:locate/brightness").starts_with("255"));
    // Without an enclosure the board's word counts.
    fs::remove_dir_all(machine.sys().join("class/enclosure")).unwrap();
    assert_eq!(light_of(&sys, "sda", None), None);
    let tray = light_of(&sys, "sda", Some(&board)).unwrap();
    set_light(&sys, &tray, true).unwrap();
    assert!(written("class/leds/tray:locate/brightness").starts_with('3'));
    set_light(&sys, &tray, false).unwrap();
    assert_eq!(tray.is_on(&sys), Some(false));
    assert_eq!(lights(&sys, Some(&board)).len(), 2);
    assert_eq!(light_of(&sys, "sdz", Some(&board)), None);
    fs::remove_dir_all(machine.sys().join("class/leds/tray:locate")).unwrap();
    assert!(matches!(set_light(&sys, &tray, true), Err(LocateError::Refused { .. })));
}

#[test]
fn the_inventory_is_what_the_machine_is_and_travels_whole() {
    let machine = Machine::new();
    let readings = Readings::take(&machine.roots());
    let boards = Boards::shipped().unwrap();
    let inventory = Inventory::of(&machine.roots(), &readings, boards.of_machine(&machine.tree()));
    assert_eq!(inventory.board.as_deref(), Some("generic"));
    assert_eq!(inventory.machine.product.as_deref(), Some("Box 1"));
    assert_eq!(inventory.machine.serial, None, "for root only, mostly");
    assert_eq!(
        (inventory.processors.threads, inventory.processors.model.as_deref()),
        (2, Some("Example CPU"))
    );
    assert_eq!((inventory.memory_bytes, inventory.dimms.len()), (65_536 * 1024, 1));
    assert_eq!(inventory.disks.iter().map(|disk| disk.located).collect::<Vec<_>>(), [Some(false); 2]);
    let text = serde_json::to_string(&(&inventory, &readings)).unwrap();
    assert_eq!(serde_json::from_str::<(Inventory, Readings)>(&text).unwrap(), (inventory, readings));
}

#[test]
fn a_machine_without_anything_is_read_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let roots = health::Roots::new(dir.path(), dir.path());
    let readings = Readings::take(&roots);
    assert_eq!(readings, Readings::default());
    assert_eq!(Judge::default().findings(NOW, &readings, None), []);
    assert_eq!(Inventory::of(&roots, &readings, None).memory_bytes, 0);
}
