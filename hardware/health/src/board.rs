//! What sensors, lines and lights mean on a board: profiles as data (`hardware/boards/*.toml`, and a site's own).
//!
//! A profile of a format newer than this program's is refused, and so is a key that it does not know: half a profile would leave
//! something unwatched without a word.

use serde::{Deserialize, Serialize};

use crate::tree::Tree;

/// The format of profiles that this program reads.
const FORMAT: u32 = 1;

/// Longest profile.
const PROFILE_BYTES_MAX: usize = 64 * 1024;

/// Most tables of a kind.
const TABLES_MAX: usize = 256;

/// What can be measured, in degrees Celsius.
const CELSIUS: std::ops::RangeInclusive<i64> = -40..=150;

/// The profiles that come with this program.
const SHIPPED: [(&str, &str); 2] = [
    ("generic.toml", include_str!("../../boards/generic.toml")),
    ("qemu-q35.toml", include_str!("../../boards/qemu-q35.toml")),
];

/// Why a profile cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("board profile {file}, line {line}: {what}")]
pub struct BoardError {
    /// The profile.
    pub file: String,
    /// Where in it.
    pub line: usize,
    /// What is wrong, and what to do.
    pub what: String,
}

/// A profile.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Board {
    /// 1.
    pub format: u32,
    /// Its name.
    pub name: String,
    /// Attributes of `/sys/class/dmi/id` that a machine must have, each as it stands there. None for every machine.
    #[serde(default, rename = "match")]
    pub matches: std::collections::BTreeMap<String, String>,
    /// Sensors of temperature.
    #[serde(default, rename = "temperature")]
    pub temperatures: Vec<BoardSensor>,
    /// Lights at disks' places.
    #[serde(default, rename = "light")]
    pub lights: Vec<BoardLight>,
    /// General-purpose lines.
    #[serde(default, rename = "line")]
    pub lines: Vec<BoardLine>,
}

/// What a sensor measures, and what is too much. Without `input` and `device` it holds for all of the chip's.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoardSensor {
    /// The driver's name of the chip.
    pub chip: String,
    /// The driver's label of the input.
    pub input: Option<String>,
    /// What it measures, for people.
    pub means: String,
    /// From here on somebody should look; the driver's own limit where it is not said.
    pub warm_celsius: Option<i64>,
    /// From here on it is about to break; the driver's own limit where it is not said.
    pub critical_celsius: Option<i64>,
    /// It reads nonsense on this board: nothing follows from it.
    #[serde(default)]
    pub ignore: bool,
}

/// The light at the place of whatever is attached to a port.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoardLight {
    /// The name in `/sys/class/leds`.
    pub led: String,
    /// A part of the path that the kernel has for a disk there, as in `ata3` or `0000:01:00.0`.
    pub port: String,
    /// What stands at the place.
    pub means: String,
}

/// What a line tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LineMeaning {
    /// Power is going.
    PowerFail,
    /// The chassis is open.
    Intrusion,
}

/// The level at which a line says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LineActive {
    /// Current flows.
    High,
    /// None does.
    Low,
}

/// A general-purpose line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BoardLine {
    /// Its chip's device.
    pub chip: String,
    /// Its number there.
    pub line: u32,
    /// When it says so.
    pub active: LineActive,
    /// What it says.
    pub means: LineMeaning,
}

impl Board {
    /// Reads the profile `text` that stands in `file`.
    ///
    /// # Errors
    /// Where it is none, with the line.
    pub fn parse(text: &str, file: &str) -> Result<Self, BoardError> {
        let wrong = |line, what: String| BoardError { file: file.to_owned(), line, what };
        if text.len() > PROFILE_BYTES_MAX {
            return Err(wrong(
                1,
                format!("it is longer than {PROFILE_BYTES_MAX} bytes; no board has so much to tell"),
            ));
        }
        // First of all: what else a newer format has, this program cannot judge.
        if let Ok(Numbered { format }) = toml::from_str(text)
            && format != FORMAT
        {
            let what = format!(
                "format {format} is not the one that this program reads, {FORMAT}; install a version that does"
            );
            return Err(wrong(line_of(text, "format"), what));
        }
        let board: Self = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            wrong(1 + before.matches('\n').count(), error.message().replace('\n', "; "))
        })?;
        board.check().map_err(|(key, what)| wrong(line_of(text, key), what))?;
        Ok(board)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        if self.name.is_empty() {
            return Err(("name", "the name is empty; give the board's".to_owned()));
        }
        let tables = [self.temperatures.len(), self.lights.len(), self.lines.len(), self.matches.len()];
        if tables.into_iter().any(|count| count > TABLES_MAX) {
            return Err(("format", format!("there are more than {TABLES_MAX} tables of one kind")));
        }
        if let Some(key) = self.matches.keys().find(|key| !is_attribute(key)) {
            return Err((
                "[match]",
                format!("`{key}` is no attribute of /sys/class/dmi/id; list that directory"),
            ));
        }
        for sensor in &self.temperatures {
            let limits =
                [("warm_celsius", sensor.warm_celsius), ("critical_celsius", sensor.critical_celsius)];
            for (key, limit) in limits {
                if limit.is_some_and(|limit| !CELSIUS.contains(&limit)) {
                    return Err((
                        key,
                        format!("give {} to {} degrees Celsius", CELSIUS.start(), CELSIUS.end()),
                    ));
                }
            }
            if sensor
                .warm_celsius
                .zip(sensor.critical_celsius)
                .is_some_and(|(warm, critical)| warm > critical)
            {
                return Err(("warm_celsius", "it is above critical_celsius; exchange them".to_owned()));
            }
        }
        // Both become parts of paths.
        let is_part = |text: &str| !text.is_empty() && !text.contains('/') && text != "." && text != "..";
        match self.lights.iter().find(|light| !is_part(&light.led) || !is_part(&light.port)) {
            Some(_) => {
                Err(("[[light]]", "led and port are names without a slash; see /sys/class/leds".to_owned()))
            }
            None => Ok(()),
        }
    }

    /// Whether the machine is of this kind.
    pub fn is_of(&self, sys: &Tree) -> bool {
        let attribute = |name: &str| sys.text(&format!("class/dmi/id/{name}"));
        self.matches.iter().all(|(name, value)| attribute(name).as_ref() == Some(value))
    }

    /// What is said about a sensor: first about its input, else about its chip.
    pub fn sensor(&self, chip: &str, label: &str) -> Option<&BoardSensor> {
        let of_chip = || self.temperatures.iter().filter(|sensor| sensor.chip == chip);
        let of_input = of_chip().find(|sensor| sensor.input.as_deref() == Some(label));
        of_input.or_else(|| of_chip().find(|sensor| sensor.input.is_none()))
    }
}

/// A profile as far as every format has it.
#[derive(Deserialize)]
struct Numbered {
    format: u32,
}

fn is_attribute(key: &str) -> bool {
    !key.is_empty()
        && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// The first line that begins with a key or table.
fn line_of(text: &str, key: &str) -> usize {
    let starts = |line: &str| line.trim_start().starts_with(key);
    text.lines().position(starts).map_or(1, |line| line + 1)
}

/// Profiles to choose from, the most particular first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boards(Vec<Board>);

impl Boards {
    /// Those that come with this program.
    ///
    /// # Errors
    /// Never: a test reads each.
    pub fn shipped() -> Result<Self, BoardError> {
        let mut boards: Vec<Board> =
            SHIPPED.iter().map(|(file, text)| Board::parse(text, file)).collect::<Result<_, _>>()?;
        boards.sort_by_key(|board| std::cmp::Reverse(board.matches.len()));
        Ok(Self(boards))
    }

    /// By its name.
    pub fn named(&self, name: &str) -> Option<&Board> {
        self.0.iter().find(|board| board.name == name)
    }

    /// The one that says most about the machine.
    pub fn of_machine(&self, sys: &Tree) -> Option<&Board> {
        self.0.iter().find(|board| board.is_of(sys))
    }

    /// The names of all.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|board| board.name.as_str())
    }
}
