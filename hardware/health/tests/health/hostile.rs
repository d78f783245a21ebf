//! Whatever a disk or the kernel says, reading it ends with a value or an error.

use std::fs;

use health::{AtaSmart, Board, Boards, Capture, Inventory, Judge, NvmeSmart, Readings, lights};
use proptest::collection::vec;
use proptest::prelude::*;
use units::BootInstant;

use crate::tree::{Machine, golden};

/// Bytes as a file of the kernel may have them: numbers at the ends of their ranges, text, anything.
fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        vec(any::<u8>(), 0..64),
        any::<i128>().prop_map(|number| number.to_string().into_bytes()),
        Just(i64::MIN.to_string().into_bytes()),
        Just(i64::MAX.to_string().into_bytes()),
        Just(u64::MAX.to_string().into_bytes()),
        Just(vec![b'9'; 5000]),
        Just(Vec::new()),
    ]
}

proptest! {
    #[test]
    fn pages_of_any_bytes(page in vec(any::<u8>(), 500..520), thresholds in vec(any::<u8>(), 510..514)) {
        let _ = NvmeSmart::parse(&page);
        let _ = AtaSmart::parse(&page, &thresholds);
    }

    /// Pages that add up, so that what is behind the check is reached too.
    #[test]
    fn ata_pages_that_add_up(mut data in vec(any::<u8>(), 512), mut thresholds in vec(any::<u8>(), 512)) {
        for page in [&mut data, &mut thresholds] {
            let sum = page[..511].iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            page[511] = sum.wrapping_neg();
        }
        let smart = AtaSmart::parse(&data, &thresholds).unwrap();
        prop_assert!(smart.attributes.len() <= 30);
        let _ = (smart.failing().count(), smart.celsius(), smart.used_percent());
    }

    #[test]
    fn captures_of_any_bytes(bytes in vec(any::<u8>(), 0..1100)) {
        let _ = Capture::parse(&bytes);
    }

    #[test]
    fn captures_with_some_bytes_changed(changes in vec((0..1048_usize, any::<u8>()), 1..4), cut in 0..1100_usize) {
        let mut bytes = fs::read(golden().join("sda.smart")).unwrap();
        changes.into_iter().for_each(|(at, byte)| bytes[at] = byte);
        bytes.truncate(cut);
        if let Ok(capture) = Capture::parse(&bytes) {
            prop_assert_eq!(capture.encode(), bytes, "what is read is all that is there");
        }
    }

    #[test]
    fn profiles_of_any_text(text in "\\PC{0,200}", line in 0..12_usize) {
        let _ = Board::parse(&text, "b");
        // And one that was right, with a line of nonsense in it.
        let good = "format = 1\nname = \"b\"\n[match]\nboard_name = \"x\"\n[[temperature]]\nchip = \"c\"\nmeans = \"m\"\n";
        let mut lines: Vec<&str> = good.lines().collect();
        lines.insert(line.min(lines.len()), &text);
        if let Err(error) = Board::parse(&lines.join("\n"), "b") {
            prop_assert!(error.line >= 1 && !error.what.contains('\n'));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A machine of which any files say anything.
    #[test]
    fn a_machine_of_which_any_files_say_anything(changes in vec((any::<prop::sample::Index>(), content()), 1..20), now in any::<u64>()) {
        let machine = Machine::new();
        let files = machine.files();
        for (file, bytes) in &changes {
            fs::write(file.get(&files), bytes).unwrap();
        }
        let boards = Boards::shipped().unwrap();
        let board = boards.named("generic");
        let mut judge = Judge::default();
        let readings = Readings::take(&machine.roots());
        for _ in 0..2 {
            for finding in judge.findings(BootInstant(now), &readings, board) {
                prop_assert!(!finding.subject.contains(char::is_control) && !finding.found.is_empty());
            }
        }
        let inventory = Inventory::of(&machine.roots(), &readings, board);
        prop_assert!(serde_json::to_string(&inventory).is_ok());
        let _ = lights(&machine.tree(), board);
    }
}
