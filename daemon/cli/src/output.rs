//! What a command says: one JSON document, or text for people.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::failure::{Done, Failure};

/// Where and how a command speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Gives a command's result.
    pub(crate) fn show(self, value: &impl Serialize, text: impl FnOnce() -> String) -> Done {
        if self.json {
            let document = serde_json::to_string_pretty(value)
                .map_err(|error| Failure::local(format!("the answer cannot be written: {error}"), ""))?;
            print(&document)
        } else {
            print(&text())
        }
    }

    /// Gives a result as JSON on one line, for a reader that goes on listening.
    pub(crate) fn announce(self, value: &impl Serialize) -> Done {
        let document = serde_json::to_string(value)
            .map_err(|error| Failure::local(format!("the answer cannot be written: {error}"), ""))?;
        print(&document)
    }

    /// A remark for people beside the result; nothing in JSON.
    pub(crate) fn note(self, text: &str) {
        if !self.json {
            // Standard error may be closed; there is nobody to tell then.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }

    pub(crate) fn failure(self, failure: &Failure) {
        let mut stderr = io::stderr();
        let _ = if self.json {
            let body = serde_json::json!({ "error": failure.problem });
            writeln!(stderr, "{body}")
        } else {
            writeln!(stderr, "error: {failure}")
        };
    }

    /// A bar over `total` bytes; shown on a terminal only.
    pub(crate) fn progress(self, total: u64, what: &str) -> ProgressBar {
        const SHAPE: &str = "  {msg:<28} [{bar:30}] {bytes:>11} of {total_bytes} at {binary_bytes_per_sec}";
        let visible = !self.json && io::stderr().is_terminal();
        let target = if visible { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(total), target);
        if let Ok(style) = ProgressStyle::with_template(SHAPE) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    /// Asks whether to do what cannot be undone. `yes` answers for the person.
    pub(crate) fn confirm(self, yes: bool, question: &str) -> Done {
        if yes {
            return Ok(());
        }
        let unasked = || {
            Failure::usage(format!("{question} This cannot be undone."), "add --yes if that is what you want")
        };
        if self.json || !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(unasked());
        }
        let _ = write!(io::stderr(), "{question} This cannot be undone. Type yes to go on: ");
        let mut answer = String::new();
        match io::stdin().read_line(&mut answer) {
            Ok(_) if answer.trim() == "yes" => Ok(()),
            _ => Err(Failure::local("nothing was done", "")),
        }
    }
}

pub(crate) fn print(text: &str) -> Done {
    let mut stdout = io::stdout().lock();
    let end = if text.ends_with('\n') || text.is_empty() { "" } else { "\n" };
    match write!(stdout, "{text}{end}").and_then(|()| stdout.flush()) {
        // The reader has seen enough, as in `nightlatch status | head`.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Failure::local(format!("cannot write to standard output: {error}"), "")),
        Ok(()) => Ok(()),
    }
}

/// Columns wide enough for their longest cell. `empty` is said where there are no rows.
pub(crate) fn table(headers: &[&str], rows: &[Vec<String>], empty: &str) -> String {
    if rows.is_empty() {
        return format!("{empty}\n");
    }
    let mut widths: Vec<usize> = headers.iter().map(|header| header.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<_> = cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(&mut headers.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// A length of time as people say it.
pub(crate) fn duration_ms(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{}.{} s", ms / 1000, ms % 1000 / 100),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} days", ms / 86_400_000),
    }
}

/// A length of time in whole seconds as people say it.
pub(crate) fn until(seconds: u64) -> String {
    duration_ms(seconds.saturating_mul(1000))
}

/// A moment, and how long ago it was.
pub(crate) fn moment(unix_s: u64) -> String {
    const SHAPE: &[time::format_description::BorrowedFormatItem<'_>] =
        time::macros::format_description!("[year]-[month]-[day] [hour]:[minute]:[second] UTC");
    let now =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    let ago = duration_ms(now.saturating_sub(unix_s).saturating_mul(1000));
    i64::try_from(unix_s)
        .ok()
        .and_then(|seconds| time::OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|moment| moment.format(SHAPE).ok())
        .map_or_else(|| format!("Unix second {unix_s}"), |text| format!("{text} ({ago} ago)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_trailing_blanks() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["longer".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "N"], &rows, "none"), "NAME    N\na       1\nlonger\n");
        assert_eq!(table(&["NAME"], &[], "no volumes yet"), "no volumes yet\n");
    }

    #[test]
    fn durations_read_naturally() {
        for (ms, text) in
            [(0, "0 ms"), (999, "999 ms"), (1_500, "1.5 s"), (180_000, "3 min"), (90_000_000, "25 h")]
        {
            assert_eq!(duration_ms(ms), text);
        }
        assert_eq!(duration_ms(u64::MAX), "213503982334 days");
    }
}
