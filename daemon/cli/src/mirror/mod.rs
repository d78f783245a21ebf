//! `nightlatch mirror`: brings what is in a bucket of any S3 server into a bucket of another.
//!
//! Both are listed side by side, and what the target has not, or has older, is copied through this machine: small objects in one
//! piece, large ones in parts, in those of the source where it says how long they are, so that both have the same entity tag.
//!
//! Invariants:
//! - Nothing is deleted at the target, and nothing changed that is not written anew as a whole.
//! - An object is copied as one: each of its pieces is asked for under the entity tag that was listed.
//! - A copy says of what it is one ([`crate::s3`], `SOURCE_ETAG`): what was overwritten at the source meanwhile is copied the next time,
//!   whatever the clocks say.
//! - A key that a URL cannot name is not asked for: it would be another object.
//! - What breaks off goes on the next time where it was: whole objects by the listings, parts by what `journal` has written down.

mod compare;
mod journal;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use futures::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use rusty_s3::{Credentials, UrlStyle};
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use units::ByteLen;

use self::compare::{Candidate, Comparison, Seen};
use self::journal::{Journal, Upload};
use crate::args::{MirrorArgs, Place};
use crate::commands::wait;
use crate::failure::{Done, Exit, Failure};
use crate::output::Output;
use crate::s3::{Listed, Part, S3, check_key, persist};

const MIB: u64 = 1 << 20;

/// Objects up to this size are copied in one piece, others in parts of as much unless their source has others.
const PIECE_BYTES: u64 = 16 * MIB;

/// Parts of a source are taken over up to this length: each is in memory as a whole.
const SOURCE_PART_BYTES_MAX: u64 = 64 * MIB;

/// Shortest part but the last, and most parts (S3).
const PART_BYTES_MIN: u64 = 5 * MIB;
const PARTS_MAX: u64 = 10_000;

/// Parts of one object on their way at the same time.
const PARTS_AT_ONCE: usize = 4;

/// Objects that fail are passed over, but not for ever: the next may well fail for the same reason.
const FAILED_MAX: usize = 100;

/// What was done, as it is shown.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Objects at the source.
    objects: u64,
    /// Of these, those that the target had already.
    unchanged: u64,
    copied: u64,
    copied_bytes: u64,
    /// Of the copied, those that have the same entity tag on both sides.
    same_etag: u64,
    /// Parts that an earlier run had brought over.
    parts_there_already: u64,
    /// Of the copied, those whose tags were left behind.
    without_tags: u64,
    /// Deleted at the source since it was listed.
    gone: u64,
    failed: Vec<Failed>,
    seconds: f64,
    /// Nothing was copied: this is what would be.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    dry_run: bool,
}

#[derive(Debug, Serialize)]
struct Failed {
    key: String,
    why: String,
}

/// One side.
struct Side {
    s3: S3,
    prefix: String,
}

struct Mirror {
    source: Side,
    target: Side,
    seen: Seen,
    journal: Mutex<Journal>,
    /// Pieces in memory; a longer one counts as many.
    pieces: Semaphore,
    pieces_max: u16,
    bar: ProgressBar,
}

/// What became of one object.
enum Outcome {
    Copied(Copied),
    Unchanged,
    Gone,
    Failed(Failed),
}

#[derive(Default)]
struct Copied {
    bytes: u64,
    same_etag: bool,
    parts_there_already: u64,
    had_tags: bool,
}

pub(crate) fn run(arguments: &MirrorArgs, output: Output) -> Done {
    let began = Instant::now();
    let mut report = wait(async {
        let mirror = Mirror::open(arguments, output)?;
        let report = mirror.run(arguments).await;
        mirror.bar.finish_and_clear();
        report
    })??;
    report.seconds = began.elapsed().as_secs_f64();
    report.dry_run = arguments.dry_run;
    output.show(&report, || text(&report))?;
    match report.failed.len() {
        0 => Ok(()),
        failed => Err(Failure::new(
            Exit::Failed,
            "incomplete",
            format!("{failed} objects were not copied"),
            "mend what is said of each, and run it again: what is there is not copied twice",
        )),
    }
}

fn text(report: &Report) -> String {
    let Report { objects, unchanged, copied, copied_bytes, parts_there_already, .. } = report;
    let done = if report.dry_run { "To copy" } else { "Copied" };
    let mut text = format!(
        "{done}: {copied} of {objects} objects, {}; {unchanged} are there already.\n",
        ByteLen(*copied_bytes)
    );
    if *parts_there_already > 0 {
        text += &format!("{parts_there_already} parts had been copied before.\n");
    }
    if report.without_tags > 0 {
        text +=
            &format!("{} objects have tags at their source, which were not copied.\n", report.without_tags);
    }
    for Failed { key, why } in &report.failed {
        text += &format!("{key}: {why}\n");
    }
    text
}

impl Side {
    fn open(
        place: &Place,
        (endpoint, region, virtual_host): (&url::Url, &str, bool),
        credentials: Credentials,
        ca: Option<&Path>,
    ) -> Done<Self> {
        let style = if virtual_host { UrlStyle::VirtualHost } else { UrlStyle::Path };
        let bucket = rusty_s3::Bucket::new(endpoint.clone(), style, place.bucket.clone(), region.to_owned());
        let bucket = bucket.map_err(|error| {
            Failure::usage(
                format!("{endpoint} is no S3 server's URL: {error}"),
                "give it as https://HOST or https://HOST:PORT",
            )
        })?;
        let s3 = S3::with_credentials(bucket, credentials, ca)?.reusing_connections();
        Ok(Self { s3, prefix: place.prefix.clone() })
    }
}

/// An access key from the environment, under names that begin with `prefix`.
fn credentials(prefix: &str) -> Option<Credentials> {
    let variable = |name: &str| std::env::var(format!("{prefix}{name}")).ok().filter(|text| !text.is_empty());
    let (key, secret) = (variable("AWS_ACCESS_KEY_ID")?, variable("AWS_SECRET_ACCESS_KEY")?);
    Some(match variable("AWS_SESSION_TOKEN") {
        Some(token) => Credentials::new_with_token(key, secret, token),
        None => Credentials::new(key, secret),
    })
}

/// A target within its source would be copied into itself, again with each run.
fn refuse_own_copies((from, source): (&url::Url, &Place), (to, target): (&url::Url, &Place)) -> Done {
    let is_same_server = from.as_str().trim_end_matches('/') == to.as_str().trim_end_matches('/');
    if !is_same_server || source.bucket != target.bucket || !target.prefix.starts_with(&source.prefix) {
        return Ok(());
    }
    Err(Failure::usage(
        "the target is within the source: every run would copy the copies of the one before",
        "name a target beside the source, or in another bucket",
    ))
}

impl Mirror {
    fn open(arguments: &MirrorArgs, output: Output) -> Done<Self> {
        let MirrorArgs { source, target, from, to, .. } = arguments;
        let to_key = credentials("").ok_or_else(|| {
            Failure::usage(
                "there is no access key for the S3 server that is copied to",
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; for another key at the source, SOURCE_AWS_ACCESS_KEY_ID \
                 and SOURCE_AWS_SECRET_ACCESS_KEY as well",
            )
        })?;
        refuse_own_copies((from, source), (to, target))?;
        let from_key = credentials("SOURCE_").unwrap_or_else(|| to_key.clone());
        let from_server = (from, arguments.from_region.as_str(), arguments.from_virtual_host);
        let to_server = (to, arguments.to_region.as_str(), arguments.to_virtual_host);
        let journal = match arguments.dry_run {
            true => Journal::default(),
            false => Journal::open(arguments.journal.as_deref(), (from, source), (to, target))?,
        };
        Ok(Self {
            source: Side::open(source, from_server, from_key, arguments.from_ca.as_deref())?,
            target: Side::open(target, to_server, to_key, arguments.to_ca.as_deref())?,
            seen: Seen::default(),
            journal: Mutex::new(journal),
            pieces: Semaphore::new(arguments.at_once.into()),
            pieces_max: arguments.at_once,
            bar: output.progress(0, &source.bucket),
        })
    }

    async fn run(&self, arguments: &MirrorArgs) -> Done<Report> {
        let mut report = Report::default();
        let comparison = Comparison::new((&self.source, &self.target), &self.seen);
        let candidates = stream::try_unfold(comparison, |mut comparison| async move {
            let next = comparison.next_candidate().await?;
            Done::Ok(next.map(|candidate| (candidate, comparison)))
        });
        let copies =
            candidates.map_ok(|candidate| async move { Done::Ok(self.outcome(&candidate, arguments).await) });
        let mut outcomes = std::pin::pin!(copies.try_buffer_unordered(usize::from(arguments.at_once)));
        while let Some(outcome) = outcomes.next().await {
            match outcome? {
                Outcome::Copied(copied) => report.add(&copied),
                Outcome::Unchanged => self.seen.count_unchanged(),
                Outcome::Gone => report.gone += 1,
                Outcome::Failed(failed) => report.failed.push(failed),
            }
            if report.failed.len() >= FAILED_MAX {
                break;
            }
        }
        if report.failed.len() < FAILED_MAX {
            self.end_left_uploads(&mut report.failed).await?;
        }
        let (objects, unchanged) = self.seen.counts();
        Ok(Report { objects, unchanged, ..report })
    }

    /// Ends what earlier runs began of objects that are not to be copied any more. Everything has been listed, and what is still open
    /// belongs to objects that failed just now, or to none.
    async fn end_left_uploads(&self, failed: &mut Vec<Failed>) -> Done {
        let kept: BTreeSet<String> = failed.iter().map(|failed| self.target_key(&failed.key)).collect();
        for (key, upload) in self.journal_lock(|journal| journal.open_uploads()) {
            if kept.contains(&key) {
                continue;
            }
            match persist(async || self.target.s3.abort_upload(&key, &upload).await).await {
                Ok(()) => self.journal_lock(|journal| journal.ended(&key))?,
                Err(failure) => {
                    let why = format!("an upload of it that was begun could not be ended: {failure}");
                    failed.push(Failed { key, why });
                }
            }
        }
        Ok(())
    }

    async fn outcome(&self, candidate: &Candidate, arguments: &MirrorArgs) -> Outcome {
        self.bring(candidate, arguments).await.unwrap_or_else(|failure| {
            Outcome::Failed(Failed { key: candidate.listed.key.clone(), why: failure.problem.message })
        })
    }

    async fn bring(&self, candidate: &Candidate, arguments: &MirrorArgs) -> Done<Outcome> {
        let wanted = &candidate.listed;
        let key = self.target_key(&wanted.key);
        check_key(&wanted.key)?;
        check_key(&key).map_err(|failure| failure.during("at the target"))?;
        if let Some(is_newer) = candidate.other_there
            && self.is_copy_of(wanted, &key, is_newer && !arguments.exact).await?
        {
            return Ok(Outcome::Unchanged);
        }
        self.bar.inc_length(wanted.bytes);
        if arguments.dry_run {
            return Ok(Outcome::Copied(Copied { bytes: wanted.bytes, ..Copied::default() }));
        }
        Ok(self.copy(wanted, &key).await?.map_or(Outcome::Gone, Outcome::Copied))
    }

    /// Whether the target's object is a copy of the source's as that is now; `otherwise` where it does not say of what it is one.
    async fn is_copy_of(&self, wanted: &Listed, key: &str, otherwise: bool) -> Done<bool> {
        persist(async || {
            Ok(match self.target.s3.source_etag(key).await? {
                Ok(Some(etag)) => Ok(etag == wanted.etag),
                Ok(None) => Ok(otherwise),
                Err(refusal) if refusal.status == http::StatusCode::NOT_FOUND => Ok(false),
                Err(refusal) => Err(refusal),
            })
        })
        .await
    }

    fn target_key(&self, source: &str) -> String {
        let rest = source.strip_prefix(&self.source.prefix).unwrap_or(source);
        format!("{}{rest}", self.target.prefix)
    }

    /// `None`: it is not there any more.
    async fn copy(&self, wanted: &Listed, key: &str) -> Done<Option<Copied>> {
        if wanted.bytes > PIECE_BYTES {
            self.copy_parts(wanted, key).await
        } else {
            self.copy_whole(wanted, key).await
        }
    }

    /// Room in memory for a piece.
    async fn room(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let count = u32::try_from(bytes.div_ceil(PIECE_BYTES)).unwrap_or(u32::MAX);
        // It is never closed.
        self.pieces.acquire_many(count.clamp(1, self.pieces_max.into())).await.ok()
    }

    async fn copy_whole(&self, wanted: &Listed, key: &str) -> Done<Option<Copied>> {
        let _room = self.room(wanted.bytes).await;
        let Some(fetched) = self.fetch(wanted, None).await? else { return Ok(None) };
        let kept = fetched.kept_by_copy();
        let etag =
            persist(async || self.target.s3.put_kept(key, fetched.content.clone(), &kept).await).await?;
        self.bar.inc(wanted.bytes);
        Ok(Some(Copied {
            bytes: wanted.bytes,
            same_etag: etag == wanted.etag,
            parts_there_already: 0,
            had_tags: fetched.tags > 0,
        }))
    }

    /// An object or a range of it, as it was listed. `None`: it is not there any more.
    async fn fetch(
        &self,
        wanted: &Listed,
        range: Option<std::ops::Range<u64>>,
    ) -> Done<Option<crate::s3::Fetched>> {
        let len = range.as_ref().map_or(wanted.bytes, |range| range.end - range.start);
        let bytes_max = usize::try_from(len).unwrap_or(usize::MAX);
        let source = &self.source.s3;
        let fetched = persist(async || {
            Ok(match source.fetch(&wanted.key, &wanted.etag, range.clone(), bytes_max).await? {
                Ok(fetched) => Ok(Some(fetched)),
                Err(refusal) if refusal.status == http::StatusCode::NOT_FOUND => Ok(None),
                Err(refusal) => Err(refusal),
            })
        })
        .await?;
        match fetched {
            // A server may know nothing of conditions.
            Some(fetched) if fetched.content.len() as u64 != len || fetched.etag != wanted.etag => {
                Err(Failure::local("it changed while it was copied", "run it again"))
            }
            Some(fetched) => Ok(Some(fetched)),
            None if self.is_listed(&wanted.key).await? => Err(Failure::local(
                "its server lists it, and when it is asked for says that it is not there",
                "see the server's log",
            )),
            None => Ok(None),
        }
    }

    /// Whether the source still lists an object that it does not give: then it is not gone, nor is its bucket.
    async fn is_listed(&self, key: &str) -> Done<bool> {
        // A key comes before those that are longer.
        let (page, _) = persist(async || self.source.s3.list_under(key, None).await).await?;
        Ok(page.iter().any(|listed| listed.key == key))
    }

    async fn copy_parts(&self, wanted: &Listed, key: &str) -> Done<Option<Copied>> {
        let known = self.known_upload(wanted, key).await?;
        let (upload, there) = match known {
            Some(known) => known,
            None => match self.begin(wanted, key).await? {
                Some(upload) => (upload, Vec::new()),
                None => return Ok(None),
            },
        };
        let part_of = |number: u64| {
            let begin = (number - 1) * upload.part_bytes;
            begin..wanted.bytes.min(begin + upload.part_bytes)
        };
        let parts_there_already = there.len() as u64;
        let (upload_ref, there_ref, part_of) = (&upload, &there, &part_of);
        let parts = (1..=wanted.bytes.div_ceil(upload.part_bytes)).map(|number| async move {
            let range = part_of(number);
            let len = range.end - range.start;
            if let Some(part) = there_ref.iter().find(|part| u64::from(part.number) == number) {
                self.bar.inc(len);
                return Done::Ok(Some(part.etag.clone()));
            }
            let _room = self.room(len).await;
            let Some(fetched) = self.fetch(wanted, Some(range)).await? else { return Ok(None) };
            // There are at most 10,000.
            let place = (upload_ref.id.as_str(), u16::try_from(number).unwrap_or(u16::MAX));
            let etag =
                persist(async || self.target.s3.put_part(key, place, fetched.content.clone()).await).await?;
            self.bar.inc(len);
            Ok(Some(etag))
        });
        let etags: Option<Vec<String>> =
            stream::iter(parts).buffered(PARTS_AT_ONCE).try_collect::<Vec<_>>().await?.into_iter().collect();
        let Some(etags) = etags else {
            persist(async || self.target.s3.abort_upload(key, &upload.id).await).await?;
            self.journal_lock(|journal| journal.ended(key))?;
            return Ok(None);
        };
        let etag = persist(async || self.target.s3.complete_upload(key, &upload.id, &etags).await).await?;
        self.journal_lock(|journal| journal.ended(key))?;
        let (same_etag, had_tags) = (etag == wanted.etag, upload.had_tags);
        Ok(Some(Copied { bytes: wanted.bytes, same_etag, parts_there_already, had_tags }))
    }

    fn journal_lock<T>(&self, work: impl FnOnce(&mut Journal) -> T) -> T {
        work(&mut self.journal.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// The upload that an earlier run began of this very object, and what has arrived of it.
    async fn known_upload(&self, wanted: &Listed, key: &str) -> Done<Option<(Upload, Vec<Part>)>> {
        let known = self.journal_lock(|journal| journal.find(key, &wanted.etag, wanted.bytes));
        let Some(upload) = known else { return Ok(None) };
        let parts = persist(async || {
            Ok(match self.target.s3.parts(key, &upload.id).await? {
                Ok(parts) => Ok(Some(parts)),
                // Ended by somebody, or by a lifecycle.
                Err(refusal) if refusal.status == http::StatusCode::NOT_FOUND => Ok(None),
                Err(refusal) => Err(refusal),
            })
        })
        .await?;
        let Some(mut parts) = parts else { return Ok(None) };
        parts.retain(|part| {
            let begin = u64::from(part.number.saturating_sub(1)) * upload.part_bytes;
            part.number > 0
                && begin < wanted.bytes
                && part.bytes == upload.part_bytes.min(wanted.bytes - begin)
        });
        Ok(Some((upload, parts)))
    }

    /// Begins an upload; `None` where the source has the object no more.
    async fn begin(&self, wanted: &Listed, key: &str) -> Done<Option<Upload>> {
        // Of what the object was before.
        if let Some(old) = self.journal_lock(|journal| journal.of(key)) {
            persist(async || self.target.s3.abort_upload(key, &old.id).await).await?;
            self.journal_lock(|journal| journal.ended(key))?;
        }
        let part_bytes = self.part_bytes(wanted).await?;
        let Some(head) = self.fetch(wanted, Some(0..1)).await? else { return Ok(None) };
        let kept = head.kept_by_copy();
        let id = persist(async || self.target.s3.begin_upload(key, &kept).await).await?;
        let (etag, had_tags) = (wanted.etag.clone(), head.tags > 0);
        let upload = Upload { id, etag, bytes: wanted.bytes, part_bytes, had_tags };
        self.journal_lock(|journal| journal.begun(key, &upload))?;
        Ok(Some(upload))
    }

    /// How long the parts are to be: as the source's, where those are all of a length that fits.
    async fn part_bytes(&self, wanted: &Listed) -> Done<u64> {
        let own = wanted.bytes.div_ceil(PARTS_MAX).next_multiple_of(MIB).max(PIECE_BYTES);
        let Some(count) = wanted.etag.rsplit_once('-').and_then(|(_, count)| count.parse::<u64>().ok())
        else {
            return Ok(own);
        };
        let first = persist(async || self.source.s3.first_part(&wanted.key).await).await?;
        let fits = |first: &u64| {
            (PART_BYTES_MIN..=SOURCE_PART_BYTES_MAX).contains(first) && wanted.bytes.div_ceil(*first) == count
        };
        Ok(first.filter(fits).unwrap_or(own))
    }
}

impl Report {
    fn add(&mut self, copied: &Copied) {
        self.copied += 1;
        self.copied_bytes += copied.bytes;
        self.same_etag += u64::from(copied.same_etag);
        self.parts_there_already += copied.parts_there_already;
        self.without_tags += u64::from(copied.had_tags);
    }
}
