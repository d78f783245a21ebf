//! What a build makes: the same every time, of nothing that was not asked for, and refused as soon as a bit of it is another.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use harness::client::{client, run};
use harness::process::program;
use image_build::{CommandLine, Profile, SOURCES, TrustedKey, verify};
use image_tests::node::write_disk;
use image_tests::{build, programs, shared, store, workspace};

fn files_below(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut ahead = vec![folder.to_owned()];
    while let Some(folder) = ahead.pop() {
        for entry in fs::read_dir(folder).expect("a readable folder").flatten() {
            match entry.file_type().expect("a file's type").is_dir() {
                true => ahead.push(entry.path()),
                false => drop(found.insert(entry.path())),
            }
        }
    }
    found
}

fn section(image: &Path, name: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let out = folder.path().join("section");
    let mut objcopy = client("objcopy");
    objcopy.args(["-O", "binary", "--only-section", name]).arg(image).arg(&out);
    run(&mut objcopy).expect_success();
    fs::read(out).expect("a section")
}

#[test]
fn the_same_inputs_give_the_same_bytes_wherever_they_are_built() {
    let image = shared();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let programs = programs(folder.path());
    let again = folder.path().join("elsewhere/image");
    build("qemu", 1, &programs, &again);
    let names: Vec<PathBuf> = files_below(&again).into_iter().collect();
    assert!(names.len() >= 8, "{names:?}");
    for path in names {
        let name = path.strip_prefix(&again).expect("below it");
        let same = fs::read(&path).expect("a file") == fs::read(image.folder.join(name)).expect("a file");
        assert!(same, "{} was built twice and differs", name.display());
    }
    let disks = ["one", "other"].map(|name| folder.path().join(name));
    disks.iter().for_each(|disk| write_disk(&image, None, disk));
    run(Command::new("cmp").args(&disks)).expect_success();
    let report = run(client("sgdisk").arg("--verify").arg(&disks[0])).expect_success();
    assert!(report.contains("No problems found"), "{report}");
}

#[test]
fn a_flipped_bit_or_a_missing_signature_is_refused() {
    let image = shared();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let copy = folder.path().join("copy");
    run(Command::new("cp").args(["--recursive", "--reflink=auto"]).arg(&image.folder).arg(&copy))
        .expect_success();
    let key_file = image.key.with_extension("pub");
    let key = TrustedKey::load(&key_file).expect("the key");
    let nightlatch = || {
        let mut command = Command::new(program("nightlatch"));
        command.args(["image", "verify", "--key"]).arg(&key_file).arg(&copy);
        command
    };
    let verified = verify(&copy, &key).expect("a copy verifies");
    assert_eq!(verified.signed_for_secure_boot, ["disk.efi", "network.efi"]);
    assert!(run(&mut nightlatch()).expect_success().contains("is whole"));
    for path in files_below(&copy) {
        let whole = fs::read(&path).expect("a file");
        // Where nothing but padding could be, near the end, and in the middle.
        for at in [whole.len() / 2, whole.len() - 2] {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            fs::write(&path, &flipped).expect("our own");
            let is_certificate = path.starts_with(copy.join("signed")) && at == whole.len() - 2;
            // What a signature for firmware holds is for firmware to judge: it is no part of what this key signed.
            if !is_certificate {
                let error = verify(&copy, &key)
                    .err()
                    .unwrap_or_else(|| panic!("{} at {at}: accepted", path.display()));
                assert!(error.to_string().len() > 40, "{error}");
            }
        }
        fs::write(&path, &whole).expect("our own");
    }
    verify(&copy, &key).expect("as it was");
    fs::remove_file(copy.join("manifest.sig")).expect("our own");
    let refusal = run(&mut nightlatch()).expect_failure();
    assert!(refusal.contains("never signed") && refusal.contains("do not boot"), "{refusal}");
    let other = folder.path().join("other.key");
    image_build::ReleaseKey::create(&other).expect("another key");
    let other = TrustedKey::load(&other.with_extension("pub")).expect("another key");
    let error = verify(&image.folder, &other).expect_err("somebody else's signature");
    assert!(error.to_string().contains("not this key's"), "{error}");
}

#[test]
fn other_programs_agree_about_root_signatures_and_command_line() {
    let image = shared();
    let key = TrustedKey::load(&image.key.with_extension("pub")).expect("the key");
    let manifest = verify(&image.folder, &key).expect("a verified image").manifest;
    let mut veritysetup = client("veritysetup");
    veritysetup.arg("verify").arg(image.folder.join("root.erofs")).arg(image.folder.join("root.verity"));
    run(veritysetup.arg(&manifest.root.hash)).expect_success();

    let [_, certificate] = guest::appliance::example_secure_boot_key();
    for name in ["disk.efi", "network.efi"] {
        let sbverify = |file: PathBuf| {
            let mut command = store().tool("sbverify").expect("a locked tool");
            run(command.arg("--cert").arg(&certificate).arg(file))
        };
        sbverify(image.folder.join("signed").join(name)).expect_success();
        sbverify(image.folder.join(name)).expect_failure();
    }

    // The table of reasons is what the image was given, word for word.
    let sources = workspace().join(SOURCES);
    let common = CommandLine::load(&sources).expect("a command line");
    let profile = Profile::load(&sources, "qemu").expect("a profile");
    let words: Vec<_> = common.words.iter().chain(&profile.words).collect();
    assert!(words.iter().all(|word| word.reason.len() > 20), "each word has its reason: {words:?}");
    let expected: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
    for name in ["disk.efi", "network.efi"] {
        let found = section(&image.folder.join(name), ".cmdline");
        let found = String::from_utf8(found).expect("a text");
        assert_eq!(found.trim_end_matches('\0').split(' ').collect::<Vec<_>>(), expected, "{name}");
    }
}

#[test]
fn an_image_holds_nothing_that_was_not_asked_for() {
    let image = shared();
    let folder = tempfile::tempdir().expect("a temporary directory");
    let root = folder.path().join("root");
    let mut fsck = store().tool("fsck.erofs").expect("a locked tool");
    run(fsck.arg(format!("--extract={}", root.display())).arg(image.folder.join("root.erofs")))
        .expect_success();
    let is_executable = |path: &PathBuf| {
        use std::os::unix::fs::PermissionsExt;
        fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o111 != 0)
    };
    let names = files_below(&root);
    let programs: Vec<String> = names
        .iter()
        .filter(|path| is_executable(path) && !path.to_string_lossy().contains(".so"))
        .map(|path| path.strip_prefix(&root).expect("below it").display().to_string())
        .collect();
    assert_eq!(programs, ["usr/bin/nightlatchd"], "no shell, no package manager, no getty, no init but ours");
    let libraries = names.iter().filter(|path| is_executable(path) && path.to_string_lossy().contains(".so"));
    assert!(libraries.count() <= 6, "{names:?}");
    let modules: Vec<_> =
        names.iter().filter(|path| path.extension().is_some_and(|end| end == "xz")).collect();
    let of_network = modules.iter().any(|path| path.ends_with("usr/lib/modules/virtio_net.ko.xz"));
    assert!(of_network && modules.len() < 60, "{modules:?}");

    let bill: serde_json::Value =
        serde_json::from_slice(&fs::read(image.folder.join("sbom.cdx.json")).expect("a bill")).expect("JSON");
    let components = bill["components"].as_array().expect("components");
    let has = |name: &str| components.iter().any(|component| component["name"] == name);
    for name in ["libc6", "systemd-boot-efi", "node", "appliance-init", "rustls", "redb"] {
        assert!(has(name), "{name} is in the image and not in its bill of materials");
    }
    for name in ["busybox-static", "erofs-utils", "keyholder", "clap_mangen", "tempfile"] {
        assert!(!has(name), "{name} is in the bill of materials and not in the image");
    }
}

#[test]
fn every_profile_reads_and_names_modules_that_the_kernel_has() {
    let sources = workspace().join(SOURCES);
    let names = Profile::names(&sources).expect("profiles");
    assert_eq!(names, ["debug", "qemu", "server", "storage"]);
    for name in &names {
        let profile = Profile::load(&sources, name).unwrap_or_else(|error| panic!("{error}"));
        let modules =
            image_build::module_count(&store(), &profile).unwrap_or_else(|error| panic!("{name}: {error}"));
        println!("{name}: {modules} modules");
        assert!(modules > 15, "{name}");
        assert_eq!(profile.debug_shell, name == "debug");
    }
    let refused = Profile::load(&sources, "../server").expect_err("a path is no name");
    assert!(refused.to_string().contains("no profile"), "{refused}");
}
