//! Patterns of policies: `*` stands for any text, `?` for one character.

use std::borrow::Cow;

/// The variable that stands for the user's name.
const USER: &str = "${aws:username}";

/// `pattern` as it is meant for a user; `None` where it needs one and there is none.
pub(crate) fn for_user<'a>(pattern: &'a str, user: Option<&str>) -> Option<Cow<'a, str>> {
    match user {
        _ if !names_the_user(pattern) => Some(Cow::Borrowed(pattern)),
        // A name has neither stars nor question marks.
        Some(user) => Some(Cow::Owned(pattern.replace(USER, user))),
        None => None,
    }
}

/// Whether the user's name is part of it.
pub(crate) fn names_the_user(pattern: &str) -> bool {
    pattern.contains(USER)
}

/// Whether nothing but the user's name is left to be filled in: anything else would stand for itself.
pub(crate) fn has_known_variables(pattern: &str) -> bool {
    !pattern.replace(USER, "").contains("${")
}

/// Whether `text` is what `pattern` says. Takes time in proportion to the product of the lengths, at worst.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut at, mut position) = (0, 0);
    // Where the last star stands, and how much of the text it stands for so far.
    let mut star: Option<(usize, usize)> = None;
    while position < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, position));
                at += 1;
            }
            Some(byte) if *byte == b'?' || *byte == text[position] => {
                at += 1;
                position += 1;
            }
            _ => match star {
                Some((star_at, taken)) => {
                    at = star_at + 1;
                    position = taken + 1;
                    star = Some((star_at, taken + 1));
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks_stand_for_text() {
        for (pattern, text) in [
            ("", ""),
            ("*", ""),
            ("a*c", "abbc"),
            ("a?c", "abc"),
            ("*b*", "abc"),
            ("a**", "a"),
            ("*a*a*", "aba"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("", "a"), ("a", "ab"), ("a?", "a"), ("a*c", "abcd"), ("*aa", "aba")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
        assert!(!matches(&"*a".repeat(500), &"a".repeat(499)), "and it ends");
    }
}
