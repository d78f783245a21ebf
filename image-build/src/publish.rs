//! A verified image where a boot server hands it out: a folder an image, named by profile and sequence, and a link to the newest.

use std::path::{Path, PathBuf};

use crate::artefacts::{MANIFEST, Manifest, SIGNATURE, SIGNED};
use crate::error::{ImageError, Result, make_dir};
use crate::manifest::TrustedKey;
use crate::verify::verify;

/// Verifies the artefacts in `folder` and copies them below `site`; the place appears in one step. Its path comes back.
///
/// # Errors
/// Where they do not verify, an image of this sequence is there already, or a newer one is.
pub fn publish(folder: &Path, trusted: &TrustedKey, site: &Path) -> Result<(PathBuf, Manifest)> {
    let verified = verify(folder, trusted)?;
    let manifest = &verified.manifest;
    let profile = site.join(&manifest.profile);
    let place = profile.join(manifest.sequence.to_string());
    make_dir(&profile)?;
    if let Some(newest) = newest(&profile)?.filter(|newest| *newest >= manifest.sequence) {
        return Err(ImageError::Mismatch {
            what: "the image's sequence".to_owned(),
            record: "what is published",
            expected: format!("more than {newest}"),
            found: manifest.sequence.to_string(),
            next: "build it with a higher --sequence",
        });
    }
    let new = tempfile::tempdir_in(&profile).map_err(ImageError::file("make a folder in", &profile))?;
    let copy = |name: &Path| {
        let to = new.path().join(name);
        to.parent().map_or(Ok(()), make_dir)?;
        std::fs::copy(folder.join(name), &to).map(drop).map_err(ImageError::file("write", &to))
    };
    for artefact in &manifest.artefacts {
        copy(Path::new(&artefact.name))?;
    }
    for name in &verified.signed_for_secure_boot {
        copy(&Path::new(SIGNED).join(name))?;
    }
    copy(Path::new(MANIFEST))?;
    copy(Path::new(SIGNATURE))?;
    // What was copied is what is handed out: it is looked at again where it lies.
    verify(new.path(), trusted)?;
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(new.path(), readable)
        .map_err(ImageError::file("set permissions of", new.path()))?;
    std::fs::rename(new.path(), &place).map_err(ImageError::file("make", &place))?;
    link(&profile, manifest.sequence)?;
    Ok((place, verified.manifest))
}

fn newest(profile: &Path) -> Result<Option<u64>> {
    let entries = std::fs::read_dir(profile).map_err(ImageError::file("read", profile))?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).max())
}

/// Points `newest` at an image, in one step.
fn link(profile: &Path, sequence: u64) -> Result {
    let (new, link) = (profile.join("newest.new"), profile.join("newest"));
    let _ = std::fs::remove_file(&new);
    std::os::unix::fs::symlink(sequence.to_string(), &new)
        .and_then(|()| std::fs::rename(&new, &link))
        .map_err(ImageError::file("link", &link))
}
