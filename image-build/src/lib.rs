//! The appliance's image: a profile, locked packages and our own programs go in, artefacts that boot come out.
//!
//! ```text
//!   packages.lock ──> store ──┬─> kernel, stub ───────────────┐
//!   profiles/*.toml ──────────┼─> modules, C library ─> root ─> verity ─┐
//!   nightlatchd, init ────────┘                 initramfs <─────────────┘
//!                                                   └─> unified kernel images ─> manifest ─> signatures ─> disk
//! ```
//!
//! Invariants:
//! - The same inputs give the same bytes: no clock, no random number, no name of the build machine enters an artefact.
//!   Signatures are made in a step of their own and change nothing that is hashed.
//! - Nothing of a package runs: no maintainer script, and of its files only those that a profile asks for are in the image.
//! - What is executed to build (mkfs.erofs, mke2fs, sbsign) comes from the same lock, with its own C library.
//! - An unverified byte is never used: packages by the lock, artefacts by the manifest, the manifest by its signature.
//!
//! What it is not: it starts nothing and installs nothing. [`README.md`](../README.md) tells how an image boots.

mod artefacts;
mod authenticode;
mod build;
mod cpio;
mod disk;
mod elf;
mod error;
mod gpt;
mod lock;
mod manifest;
mod measure;
mod modules;
mod profile;
mod programs;
mod publish;
mod sbom;
mod sign;
mod store;
mod uki;
mod verify;
mod verity;

pub use artefacts::{Artefact, BootImage, Manifest, RootHash};
pub use build::{BuildRequest, build, module_count};
pub use cpio::Archive;
pub use disk::{Configuration, DiskRequest, make_disk};
pub use error::ImageError;
pub use lock::{Lock, Package, Use};
pub use manifest::{ReleaseKey, TrustedKey};
pub use measure::{boot_services_measurement, image_measurement};
pub use profile::{CommandLine, Profile, Word};
pub use programs::{Programs, build_programs};
pub use publish::publish;
pub use sign::{SecureBootKey, sign};
pub use store::Store;
pub use verify::{Verified, verify};

/// The folder with profiles, command line and lock in a source tree.
pub const SOURCES: &str = "image-build";
