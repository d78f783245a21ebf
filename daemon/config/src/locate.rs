//! From a key to its place in the text and back, for errors.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The line of a byte position, from 1.
pub(crate) fn line_of(text: &str, position: usize) -> usize {
    text.bytes().take(position).filter(|byte| *byte == b'\n').count() + 1
}

/// The dotted path of the innermost key whose name or value covers `position`.
pub(crate) fn key_at(text: &str, position: usize) -> Option<String> {
    let table = DeTable::parse(text).ok()?;
    let mut path = String::new();
    descend_to(table.get_ref(), position, &mut path);
    (!path.is_empty()).then_some(path)
}

fn descend_to(table: &DeTable<'_>, position: usize, path: &mut String) {
    for (key, value) in table {
        if key.span().contains(&position) || value.span().contains(&position) {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(key.get_ref());
            return descend_into(value, position, path);
        }
        // The span of `[a.b]`, where `a` has no line of its own, is that of its header: look inside all the same.
        let len = path.len();
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key.get_ref());
        let here = path.len();
        descend_into(value, position, path);
        if path.len() > here {
            return;
        }
        path.truncate(len);
    }
}

fn descend_into(value: &Spanned<DeValue<'_>>, position: usize, path: &mut String) {
    match value.get_ref() {
        DeValue::Table(table) => descend_to(table, position, path),
        DeValue::Array(array) => {
            for (index, element) in array.iter().enumerate() {
                let len = path.len();
                path.push_str(&format!("[{index}]"));
                let here = path.len();
                descend_into(element, position, path);
                if path.len() > here || element.span().contains(&position) {
                    return;
                }
                path.truncate(len);
            }
        }
        _ => {}
    }
}

/// Where the value of a dotted path stands; where the key is absent, its innermost table.
pub(crate) fn position_of(text: &str, key: &str) -> Option<usize> {
    let root = DeTable::parse(text).ok()?;
    let mut found = None;
    let mut table = root.get_ref();
    for step in key.split('.') {
        let (name, index) = match step.strip_suffix(']').and_then(|step| step.split_once('[')) {
            Some((name, index)) => (name, index.parse::<usize>().ok()),
            None => (step, None),
        };
        let Some((key, mut value)) = table.iter().find(|(key, _)| key.get_ref() == name) else { break };
        found = Some(key.span().start);
        if let Some(index) = index {
            let Some(element) = value.get_ref().as_array().and_then(|array| array.get(index)) else { break };
            value = element;
            found = Some(value.span().start);
        }
        let Some(inner) = value.get_ref().as_table() else { break };
        table = inner;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "a = 1\n\n[b]\nc = 2\n[b.d]\ne = 'x'\n\n[[f]]\ng = 1\n[[f]]\ng = 2\nh = [1,\n 2]\n";

    #[test]
    fn a_key_is_found_on_its_line_and_the_line_gives_the_key_back() {
        for (key, line) in [("a", 1), ("b.c", 4), ("b.d.e", 6), ("f[0].g", 9), ("f[1].g", 11), ("f[1].h", 12)]
        {
            let position = position_of(TEXT, key).unwrap();
            assert_eq!(line_of(TEXT, position), line, "{key}");
            assert_eq!(key_at(TEXT, position).as_deref(), Some(key));
        }
    }

    #[test]
    fn an_absent_key_is_placed_at_the_table_that_lacks_it() {
        assert_eq!(position_of(TEXT, "b.d.missing").map(|position| line_of(TEXT, position)), Some(5));
        assert_eq!(position_of(TEXT, "f[1].missing").map(|position| line_of(TEXT, position)), Some(10));
        assert_eq!(position_of(TEXT, "missing"), None);
    }
}
