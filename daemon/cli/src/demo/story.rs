//! The story of a key, with real steps and measured figures: sealed, pushed, used, lost, pushed again.

use std::io::Write;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use units::ByteLen;

use crate::commands::random_id;
use crate::demo::s3;
use crate::demo::site::{BUCKET, Site, VOLUME};
use crate::demo::traffic::{self, PIECE};
use crate::demo::{disk, setup};
use crate::failure::{Done, Failure};
use crate::loopback::processes::POLL;
use crate::output::{Output, duration_ms};
use crate::s3::S3;

/// Written to the volume; less where the volume is smaller.
const VOLUME_PIECES: u64 = 64;

/// Written as an object.
const OBJECT_PIECES: u64 = 32;

/// The object's name.
const OBJECT: &str = "letters/first-light.txt";

/// Sealing takes microseconds; the status says so when the event has come through.
const SEALED_TIMEOUT: Duration = Duration::from_secs(10);

/// Tells it. The installation is up; at the end it serves.
pub(super) async fn tell(site: &mut Site, output: Output) -> Done {
    let run = u64::from_le_bytes(random_id()?.first_chunk().copied().unwrap_or_default());
    let pieces = VOLUME_PIECES.min(setup::volume_len(site).await?.0 / PIECE as u64);
    if pieces == 0 {
        return Err(Failure::usage(
            format!("the story needs a volume of at least {}", ByteLen(PIECE as u64)),
            "give --volume-size 1G, or --json for no story",
        ));
    }
    let client = s3::client(site)?;
    seal_as_found(site, run, pieces, output).await?;
    say("1. The disk as a thief finds it")?;
    show_disk(site)?;
    say("2. The node is sealed: it runs, and serves nothing")?;
    show_refusals(site, &client).await?;

    say("3. The keyholder pushes the keys")?;
    show_push(site).await?;

    say("4. Clients write: a volume over NBD, an object over S3")?;
    let written = output.progress(pieces * PIECE as u64, "NBD volume");
    let volume_sum = traffic::write_volume(site, run, pieces, written).await?;
    line(&format!("volume {VOLUME}: {} written and flushed, SHA-256 {}", size(pieces), short(&volume_sum)))?;
    let sent = output.progress(OBJECT_PIECES * PIECE as u64, "S3 object");
    let object_sum = s3::put(&client, OBJECT, run, OBJECT_PIECES, sent).await?;
    line(&format!("s3://{BUCKET}/{OBJECT}: {} stored, SHA-256 {}", size(OBJECT_PIECES), short(&object_sum)))?;

    say("5. The power fails (SIGPWR)")?;
    lose_power(site).await?;
    show_refusals(site, &client).await?;

    say("6. The disk again: it holds all of that, and nothing of it")?;
    show_disk(site)?;

    say("7. The power is back, the keyholder pushes again")?;
    show_push(site).await?;
    let read = output.progress(pieces * PIECE as u64, "NBD volume");
    let volume_again = traffic::read_volume(site, pieces, read).await?;
    compare(&format!("volume {VOLUME}"), &volume_sum, &volume_again)?;
    let got = output.progress(OBJECT_PIECES * PIECE as u64, "S3 object");
    let object_again = s3::get(&client, OBJECT, &got).await??;
    compare(&format!("s3://{BUCKET}/{OBJECT}"), &object_sum, &object_again)
}

/// Leaves the node as the story finds it: sealed, with data on its disk.
async fn seal_as_found(site: &mut Site, run: u64, pieces: u64, output: Output) -> Done {
    if setup::node_status(site).await?.seal.sealed {
        return Ok(());
    }
    output
        .note("Writing a text to the volume, so that there is something on the disk; then sealing the node.");
    traffic::write_volume(
        site,
        run.wrapping_add(1),
        pieces,
        output.progress(pieces * PIECE as u64, "NBD volume"),
    )
    .await?;
    // Not by an administrator's wipe: that latches, and the story would begin with lifting the latch.
    signal_power_loss(site)?;
    wait_sealed(site).await
}

/// Waits until the node says that it is sealed for want of power. The keys are gone before anything else learns of it,
/// so for a moment the status may still give the cause of the time before.
async fn wait_sealed(site: &Site) -> Done {
    let deadline = Instant::now() + SEALED_TIMEOUT;
    loop {
        let seal = setup::node_status(site).await?.seal;
        if seal.sealed && seal.cause.as_deref() == Some("power-loss") {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Failure::local("the node is not sealed", "look at its log, and report this"));
        }
        tokio::time::sleep(POLL).await;
    }
}

fn show_disk(site: &Site) -> Done {
    let found = disk::look(&site.pool)?;
    let text = disk::entropy_of(&traffic::piece(0, 0));
    line(&format!("{}: {} of written sectors looked at", site.pool.display(), ByteLen(found.bytes)))?;
    line(&format!(
        "entropy {:.6} bits a byte (8 is noise; the text that clients wrote has {text:.2})",
        found.entropy
    ))?;
    line(&format!("\"{}\" found {} times", traffic::NEEDLE, found.needles))?;
    if found.needles > 0 {
        return Err(Failure::local("clear text lies on the disk", "report this: it must never happen"));
    }
    Ok(())
}

async fn show_refusals(site: &Site, client: &S3) -> Done {
    let status = setup::node_status(site).await?;
    let cause = status.seal.cause.as_deref().unwrap_or("cause unknown");
    line(&format!("status: sealed ({cause}), keys held: {}", status.key_memory.keys))?;
    line(&format!("NBD: {}", traffic::refused_volume(site).await?))?;
    match s3::get(client, OBJECT, &indicatif::ProgressBar::hidden()).await? {
        Err(refusal) => line(&format!(
            "S3: {}{}",
            refusal.status,
            refusal.retry_after.map(|after| format!(", Retry-After: {after}")).unwrap_or_default()
        )),
        Ok(_) => Err(Failure::local("a sealed node served an object", "report this: it must never happen")),
    }
}

async fn show_push(site: &mut Site) -> Done {
    let took = setup::push(site).await?;
    let status = setup::node_status(site).await?;
    line(&format!(
        "serving {} ms after the push; {} keys in {} memory, lent for {}",
        took.as_millis(),
        status.key_memory.keys,
        status.key_memory.memory,
        status.seal.lease_remaining_ms.map_or_else(|| "no time".to_owned(), duration_ms)
    ))
}

fn signal_power_loss(site: &Site) -> Done {
    let node = site.processes.node.as_ref().ok_or_else(|| Failure::local("the node is not running", ""))?;
    node.signal(Signal::SIGPWR)
}

async fn lose_power(site: &Site) -> Done {
    signal_power_loss(site)?;
    wait_sealed(site).await?;
    let status = setup::node_status(site).await?;
    match status.last_wipe {
        Some(wipe) => line(&format!(
            "{} keys overwritten and flushed from the caches in {} µs",
            wipe.keys,
            wipe.wipe_ns / 1000
        )),
        None => line("the keys are gone"),
    }
}

fn compare(what: &str, before: &[u8; 32], after: &[u8; 32]) -> Done {
    if before == after {
        return line(&format!("{what}: SHA-256 {}, the same as before", short(after)));
    }
    Err(Failure::local(
        format!("{what} came back changed: {} before, {} after", short(before), short(after)),
        "keep the directory and report this: it must never happen",
    ))
}

fn size(pieces: u64) -> ByteLen {
    ByteLen(pieces * PIECE as u64)
}

fn short(sum: &[u8; 32]) -> String {
    hex::encode(&sum[..8])
}

fn say(headline: &str) -> Done {
    write(&format!("\n{headline}\n"))
}

fn line(text: &str) -> Done {
    write(&format!("   {text}\n"))
}

fn write(text: &str) -> Done {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::local(format!("cannot write to standard output: {error}"), ""))
}
