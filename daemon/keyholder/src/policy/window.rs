//! Times of the week, in UTC: `mon-fri 07:00-19:00`, `sun 02:00-04:00`, `daily 22:00-24:00`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

const DAY_MINUTES: u16 = 24 * 60;

/// A minute of the week.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Minute {
    /// From Monday, 0, to Sunday, 6.
    pub weekday: u8,
    /// Since midnight.
    pub minute: u16,
}

impl Minute {
    /// The minute of a moment, UTC.
    pub fn of_unix_s(unix_s: u64) -> Self {
        // The first of January 1970 was a Thursday.
        let weekday = (unix_s / 86_400 + 3) % 7;
        let minute = unix_s % 86_400 / 60;
        Self { weekday: u8::try_from(weekday).unwrap_or(0), minute: u16::try_from(minute).unwrap_or(0) }
    }
}

impl fmt::Display for Minute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let day = DAYS.get(usize::from(self.weekday)).unwrap_or(&"day");
        write!(f, "{day} {:02}:{:02}", self.minute / 60, self.minute % 60)
    }
}

/// The same hours on one or several days.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Window {
    text: String,
    first_day: u8,
    last_day: u8,
    begins: u16,
    ends: u16,
}

/// A text that is no window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no time of the week, as in `mon-fri 07:00-19:00`, `sun 02:00-04:00` or `daily 22:00-24:00`, UTC"
)]
pub struct InvalidWindow(String);

impl Window {
    /// Whether the minute lies in it. The end is not in it.
    pub fn contains(&self, at: Minute) -> bool {
        let on_day = if self.first_day <= self.last_day {
            (self.first_day..=self.last_day).contains(&at.weekday)
        } else {
            at.weekday >= self.first_day || at.weekday <= self.last_day
        };
        on_day && (self.begins..self.ends).contains(&at.minute)
    }
}

impl FromStr for Window {
    type Err = InvalidWindow;

    fn from_str(text: &str) -> Result<Self, InvalidWindow> {
        let invalid = || InvalidWindow(text.to_owned());
        let (days, hours) = text.split_once(' ').ok_or_else(invalid)?;
        let day = |name: &str| {
            let index = DAYS.iter().position(|day| *day == name).ok_or_else(invalid)?;
            u8::try_from(index).map_err(|_| invalid())
        };
        let (first_day, last_day) = match days.split_once('-') {
            None if days == "daily" => (0, 6),
            None => (day(days)?, day(days)?),
            Some((first, last)) => (day(first)?, day(last)?),
        };
        let minute = |text: &str| {
            let (hours, minutes) = text.split_once(':').ok_or_else(invalid)?;
            let digits = |part: &str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
            if !digits(hours) || !digits(minutes) {
                return Err(invalid());
            }
            let number = |part: &str| part.parse::<u16>().map_err(|_| invalid());
            let (hours, minutes) = (number(hours)?, number(minutes)?);
            if minutes > 59 { Err(invalid()) } else { Ok(hours * 60 + minutes) }
        };
        let (begins, ends) = hours.split_once('-').ok_or_else(invalid)?;
        let (begins, ends) = (minute(begins)?, minute(ends)?);
        if begins >= ends || ends > DAY_MINUTES {
            return Err(invalid());
        }
        Ok(Self { text: text.to_owned(), first_day, last_day, begins, ends })
    }
}

impl TryFrom<String> for Window {
    type Error = InvalidWindow;
    fn try_from(text: String) -> Result<Self, InvalidWindow> {
        text.parse()
    }
}

impl From<Window> for String {
    fn from(window: Window) -> Self {
        window.text
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_begins_with_its_first_minute_and_ends_before_its_last() {
        let window: Window = "fri-mon 22:00-24:00".parse().unwrap();
        for (weekday, minute, inside) in [
            (4, 22 * 60, true),
            (4, 22 * 60 - 1, false),
            (5, 24 * 60 - 1, true),
            (6, 23 * 60, true),
            (0, 23 * 60, true),
            (1, 23 * 60, false),
        ] {
            assert_eq!(window.contains(Minute { weekday, minute }), inside, "{weekday} {minute}");
        }
        let hour: Window = "daily 07:00-08:00".parse().unwrap();
        assert!(hour.contains(Minute { weekday: 3, minute: 7 * 60 }));
        assert!(!hour.contains(Minute { weekday: 3, minute: 8 * 60 }));
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for text in [
            "",
            "mon",
            "mon 07:00",
            "mon 07:00-07:00",
            "mon 08:00-07:00",
            "mon 07:00-24:01",
            "mon 07:60-08:00",
            "mon 7:00-8:00",
            "Mon 07:00-08:00",
            "mon-someday 07:00-08:00",
            "07:00-08:00",
            "mon 07:00-08:00 UTC",
            "mon +7:00-08:00",
        ] {
            assert!(text.parse::<Window>().is_err(), "{text}");
        }
    }

    #[test]
    fn moments_fall_on_the_right_day() {
        for (unix_s, said) in [(0, "thu 00:00"), (1_700_000_000, "tue 22:13"), (1_704_067_199, "sun 23:59")] {
            assert_eq!(Minute::of_unix_s(unix_s).to_string(), said);
        }
    }
}
