//! What peers sent, made safe for a line of a log.
//!
//! A peer's bytes never end a line, never end a field, and never reach a terminal as a control sequence.

use std::cell::RefCell;

/// How a field of the text format stands in its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quoting {
    /// Between quotation marks: spaces are allowed.
    Quoted,
    /// Between spaces.
    Bare,
}

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Hands out an empty buffer that is used again and again.
pub(super) fn with_scratch<R>(with: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut scratch) => {
            scratch.clear();
            with(&mut scratch)
        }
        // Somebody above uses it: an own one then.
        Err(_) => with(&mut Vec::new()),
    })
}

/// At most `max` bytes of `value`, not ending within a character; says whether some are missing.
fn cut(value: &[u8], max: usize) -> (&[u8], bool) {
    if value.len() <= max {
        return (value, false);
    }
    let is_start = |at: usize| value.get(at).is_none_or(|b| b & 0xc0 != 0x80);
    let end = (max.saturating_sub(3)..=max).rev().find(|at| is_start(*at)).unwrap_or(max);
    (value.get(..end).unwrap_or_default(), true)
}

/// Whether a character may stand in a line as it is.
fn is_plain(c: char) -> bool {
    // C1 control characters move cursors, too, and U+2028 and U+2029 end lines for some readers.
    !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}')
}

/// Whether a JSON string may hold `value` as it is: visible ASCII and spaces, but no `"` and no `\`.
fn is_plain_ascii(value: &[u8]) -> bool {
    let Some(end) = value.last_chunk() else {
        return value.iter().all(|b| matches!(b, b' '..=b'~') && !matches!(b, b'"' | b'\\'));
    };
    // What is left of the last eight is looked at together with bytes before it.
    value.as_chunks().0.iter().all(|eight| is_plain_eight(*eight)) && is_plain_eight(*end)
}

/// Eight bytes at once: the top bit of a byte of `x.wrapping_sub(EACH * n) & !x` is set where the byte is less
/// than `n` (or a byte below it is, which comes to the same here).
fn is_plain_eight(bytes: [u8; 8]) -> bool {
    const EACH: u64 = u64::from_ne_bytes([1; 8]);
    const TOPS: u64 = EACH << 7;
    let x = u64::from_le_bytes(bytes);
    let is = |byte: u8| {
        let differs = x ^ (EACH * u64::from(byte));
        differs.wrapping_sub(EACH) & !differs
    };
    let control = x.wrapping_sub(EACH * u64::from(b' ')) & !x;
    (x | control | is(b'"') | is(b'\\') | is(0x7f)) & TOPS == 0
}

/// Appends `value` as a JSON string, at most `max` bytes of it, with `...` where it was cut. What is not
/// UTF-8 becomes U+FFFD.
pub(super) fn json_string(out: &mut Vec<u8>, value: &[u8], max: usize) {
    let (value, was_cut) = cut(value, max);
    out.push(b'"');
    json_text(out, value);
    if was_cut {
        out.extend_from_slice(b"...");
    }
    out.push(b'"');
}

/// Appends a part of a JSON string.
pub(super) fn json_text(out: &mut Vec<u8>, value: &[u8]) {
    if is_plain_ascii(value) {
        out.extend_from_slice(value);
    } else {
        for chunk in value.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '"' | '\\' => out.extend_from_slice(&[b'\\', c as u8]),
                    c if is_plain(c) => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
                    c => push_escape(out, b"\\u", u32::from(c), 4),
                }
            }
            if !chunk.invalid().is_empty() {
                out.extend_from_slice("\u{fffd}".as_bytes());
            }
        }
    }
}

/// Appends `value` as a field of a text line, at most `max` bytes of it, with `...` where it was cut. What
/// would end the field or the line, or is not UTF-8, becomes `\xNN`.
pub(super) fn text_field(out: &mut Vec<u8>, value: &[u8], quoting: Quoting, max: usize) {
    let (value, was_cut) = cut(value, max);
    for chunk in value.utf8_chunks() {
        for c in chunk.valid().chars() {
            let ends = matches!(c, '"' | '\\') || (quoting == Quoting::Bare && c.is_whitespace());
            if is_plain(c) && !ends {
                out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                    push_escape(out, b"\\x", byte.into(), 2);
                }
            }
        }
        for byte in chunk.invalid() {
            push_escape(out, b"\\x", (*byte).into(), 2);
        }
    }
    if was_cut {
        out.extend_from_slice(b"...");
    }
}

fn push_escape(out: &mut Vec<u8>, start: &[u8], number: u32, digits: usize) {
    out.extend_from_slice(start);
    let all = crate::trace::hex(number.into());
    out.extend(all.iter().skip(all.len() - digits));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(value: &[u8], max: usize) -> String {
        let mut out = Vec::new();
        json_string(&mut out, value, max);
        String::from_utf8(out).unwrap()
    }

    fn text(value: &[u8], quoting: Quoting) -> String {
        let mut out = Vec::new();
        text_field(&mut out, value, quoting, 100);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_strings_hold_what_was_sent() {
        for (value, expected) in [
            (&b"/plain?x=1"[..], r#""/plain?x=1""#),
            (b"a\"b\\c", r#""a\"b\\c""#),
            (b"a\r\nb\0", r#""a\u000d\u000ab\u0000""#),
            ("caf\u{e9}".as_bytes(), "\"caf\u{e9}\""),
            ("\u{9b}31m\u{2028}\u{7f}".as_bytes(), r#""\u009b31m\u2028\u007f""#),
            (b"\xff\xfea", "\"\u{fffd}\u{fffd}a\""),
        ] {
            assert_eq!(json(value, 100), expected);
        }
    }

    #[test]
    fn each_byte_in_each_place_is_plain_or_not() {
        for byte in 0..=u8::MAX {
            let plain = matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\');
            for len in 1..20 {
                for place in 0..len {
                    let mut value = vec![b'~'; len];
                    value[place] = byte;
                    assert_eq!(is_plain_ascii(&value), plain, "{byte:#x} at {place} of {len}");
                }
            }
        }
    }

    #[test]
    fn text_fields_end_neither_themselves_nor_the_line() {
        assert_eq!(text(b"a b\"c\nd", Quoting::Quoted), r"a b\x22c\x0ad");
        assert_eq!(text(b"a b\tc", Quoting::Bare), r"a\x20b\x09c");
        assert_eq!(text(b"\xff\\", Quoting::Quoted), r"\xff\x5c");
    }

    #[test]
    fn fields_are_cut_between_characters() {
        assert_eq!(json(b"abcdef", 4), r#""abcd...""#);
        assert_eq!(json("ab\u{20ac}".as_bytes(), 4), r#""ab...""#);
        assert_eq!(json("ab\u{20ac}".as_bytes(), 5), "\"ab\u{20ac}\"");
        assert_eq!(json(&[0x80; 9], 4).matches('\u{fffd}').count(), 4);
    }
}
