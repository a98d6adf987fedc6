//! What is said to the person rather than to the next program.

use std::io::{IsTerminal, stderr};

const RED: &str = "\x1b[1;31m";
const YELLOW: &str = "\x1b[1;33m";
const RESET: &str = "\x1b[0m";

/// An error.
pub(crate) fn error(text: &str) {
    say("error", RED, text);
}

/// Something to know, or to mend one day.
pub(crate) fn warning(text: &str) {
    say("warning", YELLOW, text);
}

/// Something that explains the result.
pub(crate) fn note(text: &str) {
    say("note", "", text);
}

fn say(word: &str, colour: &str, text: &str) {
    let text = printable(text);
    if !colour.is_empty()
        && stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
    {
        eprintln!("{colour}{word}{RESET}: {text}");
    } else {
        eprintln!("{word}: {text}");
    }
}

/// A manifest is somebody else's text: it must not steer the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn nothing_steers_the_terminal() {
        assert_eq!(super::printable("a\x1b[2Jb\r\nç"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}ç");
    }
}
