//! A line of text in a fixed buffer, for code that must not allocate.

/// Longest line; what doesn't fit is cut off.
const LINE_BYTES: usize = 160;

/// The line under construction.
pub(crate) struct Line {
    bytes: [u8; LINE_BYTES],
    len: usize,
}

impl Line {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; LINE_BYTES], len: 0 }
    }

    pub(crate) fn push(&mut self, text: &[u8]) -> &mut Self {
        for byte in text {
            if let Some(free) = self.bytes.get_mut(self.len) {
                *free = *byte;
                self.len += 1;
            }
        }
        self
    }

    pub(crate) fn push_number(&mut self, number: u32) -> &mut Self {
        // Ten digits are the most that a u32 has.
        let mut digits = [0_u8; 10];
        let mut rest = number;
        let mut at = digits.len();
        loop {
            at -= 1;
            // A digit is below ten.
            digits[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
            if rest == 0 {
                break;
            }
        }
        self.push(&digits[at..])
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_full() {
        for number in [0, 7, 10, 101, u32::MAX] {
            assert_eq!(Line::new().push_number(number).as_bytes(), number.to_string().as_bytes());
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_off() {
        let mut line = Line::new();
        line.push(&[b'x'; LINE_BYTES - 1]).push(b"yz");
        assert_eq!(line.as_bytes().len(), LINE_BYTES);
        assert!(line.as_bytes().ends_with(b"xy"));
    }
}
