//! Board profiles: those that are shipped, and what is said about those that are wrong.

use std::fs;
use std::path::Path;

use health::{Board, Boards};

use crate::tree::Machine;

#[test]
fn every_shipped_profile_is_one_and_the_folder_has_no_other() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../boards");
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> =
        files.filter_map(|file| file.strip_suffix(".toml").map(str::to_owned)).collect();
    let boards = Boards::shipped().unwrap();
    let mut shipped: Vec<&str> = boards.names().collect();
    names.sort();
    shipped.sort_unstable();
    assert_eq!(shipped, names);
    assert!(boards.named("generic").is_some() && boards.named("no such board").is_none());
}

#[test]
fn the_profile_that_says_most_about_the_machine_is_taken() {
    let machine = Machine::new();
    let boards = Boards::shipped().unwrap();
    assert_eq!(boards.of_machine(&machine.tree()).unwrap().name, "generic");
    machine.write("class/dmi/id/sys_vendor", b"QEMU\n");
    assert_eq!(boards.of_machine(&machine.tree()).unwrap().name, "generic", "half of a match is none");
    machine.write("class/dmi/id/product_name", b"Standard PC (Q35 + ICH9, 2009)\n");
    assert_eq!(boards.of_machine(&machine.tree()).unwrap().name, "qemu-q35");
}

#[test]
fn the_example_of_the_readme_is_a_profile() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../boards/README.md");
    let text = fs::read_to_string(readme).unwrap();
    let (_, rest) = text.split_once("```toml\n").unwrap();
    let board = Board::parse(rest.split_once("```").unwrap().0, "README.md").unwrap();
    assert_eq!((board.temperatures.len(), board.lights.len(), board.lines.len()), (2, 1, 1));
    assert!(board.sensor("nct6798", "AUXTIN3").unwrap().ignore);
    assert_eq!(board.sensor("nct6798", "other"), None);
}

#[test]
fn errors_say_the_line_and_what_to_do() {
    let sensor = "[[temperature]]\nchip = \"c\"\nmeans = \"m\"\n";
    let cases = [
        ("format = 1\nname = \"b\"\n\ncolour = 3\n".to_owned(), 4, "colour"),
        ("format = 2\nfuture = 1\n".to_owned(), 1, "format 2"),
        ("# a board\n\nformat = 7\n".to_owned(), 3, "install a version"),
        ("format = 1\nname = \"\"\n".to_owned(), 2, "empty"),
        ("format = 1\nname = \"b\"\n[[temperature]\n".to_owned(), 3, "expected"),
        (format!("format = 1\nname = \"b\"\n{sensor}warm_celsius = 200\n"), 6, "degrees"),
        (
            format!("format = 1\nname = \"b\"\n{sensor}warm_celsius = 90\ncritical_celsius = 80\n"),
            6,
            "exchange",
        ),
        ("format = 1\nname = \"b\"\n[match]\n\"../secret\" = \"x\"\n".to_owned(), 3, "attribute"),
        (
            "format = 1\nname = \"b\"\n[[light]]\nled = \"../x\"\nport = \"p\"\nmeans = \"m\"\n".to_owned(),
            3,
            "slash",
        ),
        (format!("#{}\n", "x".repeat(64 * 1024)), 1, "longer"),
    ];
    for (text, line, what) in cases {
        let error = Board::parse(&text, "my.toml").unwrap_err();
        assert_eq!((error.file.as_str(), error.line), ("my.toml", line), "{error}");
        assert!(error.to_string().contains(what), "{error}");
    }
}
