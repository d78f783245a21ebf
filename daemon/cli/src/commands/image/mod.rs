//! `nightlatch image`: the appliance's image, built, signed, verified, published and put on a disk.

mod configuration;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use image_build::{
    BootImage, BuildRequest, DiskRequest, Lock, Manifest, Programs, ReleaseKey, SOURCES, SecureBootKey,
    Store, TrustedKey,
};

use crate::failure::{Done, Failure};
use crate::output::{Output, table};

/// Packages are kept here, below the source tree's build folder.
const STORE: &str = "target/image/store";

/// `image`.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Build an image from a source tree: root, boot images, bill of materials, manifest; unsigned
    #[command(
        after_help = "Examples:\n  nightlatch image build server --sequence 7 ./image-7\n  nightlatch image build qemu --programs target/debug ./trial    with programs that are built already\n\nThe same tree, packages and sequence give the same bytes. Profiles: image-build/profiles. Packages are fetched once, and\nonly as image-build/packages.lock has them."
    )]
    Build {
        /// The profile: server, storage, qemu or debug
        #[arg(value_name = "PROFILE")]
        image_profile: String,
        /// Counts images: `publish` takes no number that is not higher than what is published
        #[arg(long, value_name = "N", default_value_t = 1)]
        sequence: u64,
        /// The source tree
        #[arg(long, value_name = "DIR", default_value = ".")]
        sources: PathBuf,
        /// Take nightlatchd and nightlatch-init from this folder instead of building them for release
        #[arg(long, value_name = "DIR")]
        programs: Option<PathBuf>,
        /// Where packages are kept [default: target/image/store in the source tree]
        #[arg(long, value_name = "DIR")]
        store: Option<PathBuf>,
        /// Where the artefacts go: a new or empty folder
        out: PathBuf,
    },
    /// Make a release key: the secret half signs images, the public half beside it believes them
    #[command(
        after_help = "Example:\n  nightlatch image key release.key    makes release.key, to be kept offline, and release.pub"
    )]
    Key {
        /// The secret half's file
        file: PathBuf,
    },
    /// Sign a built image: its manifest, and for Secure Boot what firmware starts
    #[command(
        after_help = "Examples:\n  nightlatch image sign ./image-7 --key release.key\n  nightlatch image sign ./image-7 --key release.key --secure-boot-key db.key --secure-boot-cert db.pem\n\nNothing that was built changes: signed boot images lie in signed/ beside the others."
    )]
    Sign {
        /// The artefacts
        dir: PathBuf,
        /// The release key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The private key whose certificate the firmware believes (PEM)
        #[arg(long, value_name = "FILE", requires = "secure_boot_cert")]
        secure_boot_key: Option<PathBuf>,
        /// That certificate (PEM)
        #[arg(long, value_name = "FILE", requires = "secure_boot_key")]
        secure_boot_cert: Option<PathBuf>,
        /// The source tree, for the locked signing tool
        #[arg(long, value_name = "DIR", default_value = ".")]
        sources: PathBuf,
        /// Where packages are kept [default: target/image/store in the source tree]
        #[arg(long, value_name = "DIR")]
        store: Option<PathBuf>,
    },
    /// Verify a signed image: signature, every file, the root's hash tree, what a TPM will measure
    #[command(
        after_help = "Example:\n  nightlatch image verify ./image-7 --key release.pub\n\nIt also prints the tables by which a keyholder's policy knows the image.\n\nExit status 0 only where everything is as it was signed."
    )]
    Verify {
        /// The artefacts
        dir: PathBuf,
        /// The release key's public half
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Verify an image and put it where a boot server hands it out
    #[command(
        after_help = "Example:\n  nightlatch image publish ./image-7 --key release.pub --to /srv/nightlatch"
    )]
    Publish {
        /// The artefacts
        dir: PathBuf,
        /// The release key's public half
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The boot server's folder
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// Write a disk that boots a verified image with one node's configuration
    #[command(
        after_help = "Examples:\n  nightlatch image disk ./image-7 --key release.pub --config node.toml node-1.img\n  dd if=node-1.img of=/dev/sdX bs=4M conv=fsync\n\nThe node's certificates, keys and, where it is given, network.toml lie beside the image, where a TPM measures them; whoever\nholds the disk can read them. No key of a volume is among them."
    )]
    Disk {
        /// The artefacts
        dir: PathBuf,
        /// The release key's public half
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The node's configuration, as `nightlatch node init` made it
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Addresses, where they do not come by DHCP
        #[arg(long, value_name = "FILE", requires = "config")]
        network: Option<PathBuf>,
        /// The source tree, for the locked tool that makes file systems
        #[arg(long, value_name = "DIR", default_value = ".")]
        sources: PathBuf,
        /// Where packages are kept [default: target/image/store in the source tree]
        #[arg(long, value_name = "DIR")]
        store: Option<PathBuf>,
        /// The disk's file, which must not exist
        out: PathBuf,
    },
}

pub(crate) fn run(command: &ImageCommand, output: Output) -> Done {
    match command {
        ImageCommand::Build { image_profile, sequence, sources, programs, store, out } => {
            build((image_profile, *sequence), sources, programs.as_deref(), store.as_deref(), out, output)
        }
        ImageCommand::Key { file } => key(file, output),
        ImageCommand::Sign { dir, key, secure_boot_key, secure_boot_cert, sources, store } => {
            let secure_boot = secure_boot_key.clone().zip(secure_boot_cert.clone());
            sign(dir, key, secure_boot, (sources, store.as_deref()), output)
        }
        ImageCommand::Verify { dir, key } => verify(dir, key, output),
        ImageCommand::Publish { dir, key, to } => publish(dir, key, to, output),
        ImageCommand::Disk { dir, key, config, network, sources, store, out } => {
            let files = (config.as_deref(), network.as_deref());
            disk(dir, key, files, (sources, store.as_deref()), out, output)
        }
    }
}

fn open_store(sources: &Path, store: Option<&Path>) -> Done<Store> {
    let lock = Lock::load(&sources.join(SOURCES).join("packages.lock"))?;
    Ok(Store::new(&store.map_or_else(|| sources.join(STORE), Path::to_owned), lock))
}

fn build(
    (profile, sequence): (&str, u64),
    sources: &Path,
    programs: Option<&Path>,
    store: Option<&Path>,
    out: &Path,
    output: Output,
) -> Done {
    let workspace = std::path::absolute(sources).map_err(|error| Failure::file("find", sources, &error))?;
    let store = open_store(&workspace, store)?;
    let programs = match programs {
        Some(folder) => Programs::in_folder(folder),
        None => {
            output.note("building nightlatchd and nightlatch-init for release");
            image_build::build_programs(&workspace, &cargo_home()?, &workspace.join("target/image/programs"))?
        }
    };
    let request = BuildRequest {
        sources: &workspace.join(SOURCES),
        workspace: &workspace,
        profile,
        programs: &programs,
        store: &store,
        release: env!("CARGO_PKG_VERSION"),
        sequence,
    };
    let manifest = image_build::build(&request, out)?;
    output.show(&manifest, || {
        format!(
            "Built the image `{}` {} in {}, unsigned:\n{}\nNext:\n  nightlatch image sign {} --key release.key",
            manifest.profile,
            manifest.sequence,
            out.display(),
            listing(&manifest),
            out.display()
        )
    })
}

/// Where cargo keeps the sources of crates.
fn cargo_home() -> Done<PathBuf> {
    let named = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    named.or_else(|| std::env::home_dir().map(|home| home.join(".cargo"))).ok_or_else(|| {
        Failure::local(
            "this machine does not say where cargo is",
            "set CARGO_HOME, or build and give --programs",
        )
    })
}

fn listing(manifest: &Manifest) -> String {
    let row = |artefact: &image_build::Artefact| {
        let measured = manifest.images.iter().find(|image| image.name == artefact.name);
        let measured = measured.map(|image| format!("PCR 11 {}", image.pcr11)).unwrap_or_default();
        vec![artefact.name.clone(), artefact.bytes.to_string(), measured]
    };
    let rows: Vec<_> = manifest.artefacts.iter().map(row).collect();
    table(&["FILE", "BYTES", "MEASURED"], &rows, "no files")
}

fn key(file: &Path, output: Output) -> Done {
    let (_, public) = ReleaseKey::create(file)?;
    output.show(&serde_json::json!({ "key": file, "public": public }), || {
        format!(
            "Made a release key: {} signs images, keep it offline; {} believes them, give it to whoever verifies.",
            file.display(),
            public.display()
        )
    })
}

fn sign(
    dir: &Path,
    key: &Path,
    secure_boot: Option<(PathBuf, PathBuf)>,
    (sources, store): (&Path, Option<&Path>),
    output: Output,
) -> Done {
    let key = ReleaseKey::load(key)?;
    let secure_boot = match secure_boot {
        Some((key, certificate)) => Some((SecureBootKey { key, certificate }, open_store(sources, store)?)),
        None => None,
    };
    let secure_boot = secure_boot.as_ref().map(|(key, store)| (key, store));
    let manifest = image_build::sign(dir, &key, secure_boot)?;
    output.show(&manifest, || {
        let firmware = if secure_boot.is_some() { " and, for Secure Boot, its boot images" } else { "" };
        format!("Signed the manifest{firmware} in {}.", dir.display())
    })
}

fn verify(dir: &Path, key: &Path, output: Output) -> Done {
    let verified = image_build::verify(dir, &TrustedKey::load(key)?)?;
    let manifest = &verified.manifest;
    let shown = serde_json::json!({ "manifest": manifest, "signed_for_secure_boot": verified.signed_for_secure_boot });
    output.show(&shown, || {
        let secure_boot = match verified.signed_for_secure_boot.as_slice() {
            [] => "none".to_owned(),
            names => names.join(", "),
        };
        format!(
            "The image `{}` {} of Nightlatch {} is whole, and signed by this key.\nSigned for Secure Boot: {secure_boot}\n{}\n\n\
             For the keyholder's policy:\n{}",
            manifest.profile,
            manifest.sequence,
            manifest.release,
            listing(manifest),
            policy_tables(manifest)
        )
    })
}

/// How a policy knows the images: by what firmware started, and by their parts.
fn policy_tables(manifest: &Manifest) -> String {
    let table = |image: &BootImage| {
        let kind = image.name.strip_suffix(".efi").unwrap_or(&image.name);
        format!(
            "\n[[image]]\nname = \"{}-{}-{kind}\"\npcr4 = \"{}\"\npcr11 = \"{}\"\n",
            manifest.profile, manifest.sequence, image.pcr4, image.pcr11
        )
    };
    manifest.images.iter().map(table).collect()
}

fn publish(dir: &Path, key: &Path, to: &Path, output: Output) -> Done {
    let (place, manifest) = image_build::publish(dir, &TrustedKey::load(key)?, to)?;
    output.show(&serde_json::json!({ "place": place, "manifest": manifest }), || {
        format!("Published the image `{}` {} in {}.", manifest.profile, manifest.sequence, place.display())
    })
}

fn disk(
    dir: &Path,
    key: &Path,
    (config, network): (Option<&Path>, Option<&Path>),
    (sources, store): (&Path, Option<&Path>),
    out: &Path,
    output: Output,
) -> Done {
    let configuration = match config {
        Some(config) => configuration::collect(config, network)?,
        None => image_build::Configuration::default(),
    };
    let verified = image_build::verify(dir, &TrustedKey::load(key)?)?;
    let store = open_store(sources, store)?;
    let request =
        DiskRequest { folder: dir, verified: &verified, configuration: &configuration, store: &store };
    image_build::make_disk(&request, out)?;
    let files: Vec<&String> = configuration.files.iter().map(|(name, _)| name).collect();
    output.show(&serde_json::json!({ "disk": out, "configuration": files }), || {
        let configured = match files.len() {
            0 => "It has no configuration: the machine will say so and wait for nothing.".to_owned(),
            count => format!("It carries {count} files of the node's configuration."),
        };
        format!(
            "Wrote {}. {configured}\nCopy it to a disk whole: dd if={} of=/dev/sdX bs=4M conv=fsync",
            out.display(),
            out.display()
        )
    })
}
