//! The chart that the README shows: bars, as SVG, with nothing but text.

use std::fmt::Write as _;

use crate::{Measured, Task, ours};

const WIDTH: usize = 760;
const LABELS: usize = 190;
const BAR: usize = 18;
const GAP: usize = 6;

/// Shares of the bound in 4 KiB sectors, by group.
pub(crate) fn draw(results: &[Measured]) -> String {
    let groups: [(&str, &[Task]); 2] = [
        ("AES-256-XTS, encrypting 4 KiB sectors", &[Task::Encrypt]),
        ("Encrypting and protecting every sector: XTS with record, GCM with tag", &[Task::Seal]),
    ];
    let mut body = String::new();
    let mut y = 56;
    for (title, tasks) in groups {
        let _ = writeln!(body, r##"<text x="12" y="{y}" class="head">{title}</text>"##);
        y += 12;
        let mut rows: Vec<_> =
            results.iter().filter(|row| row.sector == 4096 && tasks.contains(&row.task)).collect();
        rows.sort_by(|a, b| b.share.total_cmp(&a.share));
        for row in rows {
            bar(&mut body, y, row);
            y += BAR + GAP;
        }
        y += 26;
    }
    let note = "Share of what one core could do if fourteen vaesenc a block were all: 100 % is a loop of nothing else.";
    let _ = writeln!(body, r##"<text x="12" y="{}" class="note">{note}</text>"##, y - 6);
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" aria-label="Share of the AES bound that ciphers reach">
<style>
text {{ font: 13px system-ui, sans-serif; fill: #24292f }}
.title {{ font-size: 16px; font-weight: 600 }}
.head {{ font-weight: 600 }}
.note {{ font-size: 11px; fill: #57606a }}
</style>
<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>
<text x="12" y="26" class="title">One core, 256 KiB buffer</text>
{body}</svg>
"##,
        height = y + 8,
    )
}

fn bar(body: &mut String, y: usize, row: &Measured) {
    let room = WIDTH - LABELS - 150;
    #[expect(clippy::cast_precision_loss, reason = "some hundred pixels")]
    let length = room as f64 * row.share;
    let colour = if row.name == ours::FASTEST { "#0b6e4f" } else { "#8c959f" };
    let (text_y, label_x, name) = (y + 14, LABELS - 8, &row.name);
    let _ = writeln!(body, r##"<text x="{label_x}" y="{text_y}" text-anchor="end">{name}</text>"##);
    let _ = writeln!(
        body,
        r##"<rect x="{LABELS}" y="{y}" width="{length:.1}" height="{BAR}" fill="{colour}"/>"##
    );
    #[expect(clippy::cast_precision_loss, reason = "some hundred pixels")]
    let value_x = LABELS as f64 + length + 6.0;
    let _ = writeln!(
        body,
        r##"<text x="{value_x:.1}" y="{text_y}">{:.0} % ({:.1} GiB/s)</text>"##,
        100.0 * row.share,
        row.gib
    );
}
