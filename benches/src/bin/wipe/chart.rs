//! The picture that the README shows: from the event to keys gone, and how long a power supply leaves.

use std::fmt::Write as _;

use crate::rounds::{Source, Times, percentile};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 120.0;
const RIGHT: f64 = 730.0;
const ROW: f64 = 34.0;
const TOP: f64 = 74.0;

/// The axis: from 1 µs to 100 ms.
const DECADES: f64 = 5.0;

/// What ATX promises: from the loss of PWR_OK to the rails going, and from the loss of mains to the loss of PWR_OK.
const ATX: [(f64, &str); 2] =
    [(1_000.0, "PWR_OK gone: rails hold 1 ms"), (16_000.0, "mains gone: PWR_OK holds 16 ms")];

fn x(us: f64) -> f64 {
    LEFT + (RIGHT - LEFT) * us.max(1.0).log10() / DECADES
}

pub(crate) fn draw(measured: &[(Source, Times)]) -> String {
    let mut body = String::new();
    #[expect(clippy::cast_precision_loss, reason = "five sources")]
    let bottom = TOP + ROW * measured.len() as f64;
    for (us, label) in
        [(1.0, "1 µs"), (10.0, "10 µs"), (100.0, "100 µs"), (1e3, "1 ms"), (1e4, "10 ms"), (1e5, "100 ms")]
    {
        let at = x(us);
        let _ =
            writeln!(body, r##"<line x1="{at:.1}" y1="{TOP}" x2="{at:.1}" y2="{bottom}" class="grid"/>"##);
        let _ = writeln!(
            body,
            r##"<text x="{at:.1}" y="{:.1}" text-anchor="middle" class="note">{label}</text>"##,
            bottom + 16.0
        );
    }
    for (us, label) in ATX {
        let at = x(us);
        let _ = writeln!(
            body,
            r##"<line x1="{at:.1}" y1="{:.1}" x2="{at:.1}" y2="{bottom}" class="atx"/>"##,
            TOP - 8.0
        );
        let anchor = if us < 1e4 { "end" } else { "middle" };
        let _ = writeln!(
            body,
            r##"<text x="{at:.1}" y="{:.1}" text-anchor="{anchor}" class="note">{label}</text>"##,
            TOP - 12.0
        );
    }
    let mut y = TOP + 8.0;
    for (source, times) in measured {
        row(&mut body, y, *source, times);
        y += ROW;
    }
    let note = "Bar: median to 99.9 %. Dot: the longest. Rounds in which the machine itself stood still are left out; see wipe.json.";
    let height = bottom + 48.0;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="From an event to keys wiped and flushed, with what ATX leaves">
<style>
text {{ font: 13px system-ui, sans-serif; fill: #24292f }}
.title {{ font-size: 16px; font-weight: 600 }}
.note {{ font-size: 11px; fill: #57606a }}
.grid {{ stroke: #d0d7de; stroke-width: 1 }}
.atx {{ stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 4 3 }}
</style>
<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>
<text x="12" y="26" class="title">From the event to keys zeroed and flushed, all cores busy</text>
{body}<text x="12" y="{:.1}" class="note">{note}</text>
</svg>
"##,
        height - 10.0
    )
}

fn row(body: &mut String, y: f64, source: Source, times: &Times) {
    let sorted = times.filtered();
    if sorted.is_empty() {
        return;
    }
    let [from, to, longest] = [0.5, 0.999, 1.0].map(|share| x(percentile(&sorted, share)));
    let (text, middle, width) = (y + 14.0, y + 9.0, (to - from).max(2.0));
    let name = source.name();
    let _ = writeln!(body, r##"<text x="{:.1}" y="{text:.1}" text-anchor="end">{name}</text>"##, LEFT - 8.0);
    let _ =
        writeln!(body, r##"<rect x="{from:.1}" y="{y:.1}" width="{width:.1}" height="18" fill="#0b6e4f"/>"##);
    let _ = writeln!(body, r##"<circle cx="{longest:.1}" cy="{middle:.1}" r="4" fill="#0b6e4f"/>"##);
}
