//! A size that follows `--mmap` after a space, as it follows every other option.
//!
//! The size may be left out, so the parser takes one only behind an equals sign: the word after
//! the option may be the program. A word that is a size, or `off`, is no program's name.

use std::ffi::{OsStr, OsString};

use clap::{ArgAction, CommandFactory};

use crate::cli::Cli;
use crate::size::parse_size;

const OPTION: &str = "--mmap";

/// Joins `--mmap` and a size after it, in front of the program.
pub(crate) fn join_sizes(words: Vec<OsString>) -> Vec<OsString> {
    if words.get(1).is_none_or(|word| word != "run") {
        return words;
    }
    let mut joined: Vec<OsString> = Vec::with_capacity(words.len());
    let mut rest = words.into_iter();
    joined.extend(rest.by_ref().take(2));
    while let Some(word) = rest.next() {
        let text = word.to_str().unwrap_or("");
        if text == "--" || !text.starts_with("--") {
            joined.push(word);
            break;
        }
        if text == OPTION {
            let mut ahead = rest.clone();
            if let Some(size) = ahead.next().filter(|next| is_size(next)) {
                let mut both = word;
                both.push("=");
                both.push(size);
                joined.push(both);
                rest = ahead;
                continue;
            }
        }
        let takes_a_word = takes_value(text);
        joined.push(word);
        if takes_a_word {
            joined.extend(rest.next());
        }
    }
    joined.extend(rest);
    joined
}

fn is_size(word: &OsStr) -> bool {
    let text = word.to_str().unwrap_or("");
    let is_number = text.starts_with(|first: char| first.is_ascii_digit());
    text == "off" || is_number && parse_size(text).is_ok()
}

/// Whether the word behind an option of `run` is its value.
fn takes_value(option: &str) -> bool {
    let command = Cli::command();
    let run = command.find_subcommand("run");
    let mut options = run.into_iter().flat_map(clap::Command::get_opts);
    options.any(|known| {
        known.get_long() == option.strip_prefix("--")
            && matches!(known.get_action(), ArgAction::Set)
            && !known.is_require_equals_set()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(line: &str) -> String {
        let words = line.split(' ').map(OsString::from).collect();
        let joined = join_sizes(words);
        let joined: Vec<_> = joined.iter().map(|word| word.to_string_lossy()).collect();
        joined.join(" ")
    }

    #[test]
    fn a_size_after_the_option_is_its_own() {
        let same = |line| assert_eq!(joined(line), line);
        assert_eq!(
            joined("ghostmem run --limit 1M --mmap 256K -- true"),
            "ghostmem run --limit 1M --mmap=256K -- true"
        );
        assert_eq!(
            joined("ghostmem run --mmap 4096 true 1"),
            "ghostmem run --mmap=4096 true 1"
        );
        same("ghostmem run --mmap true");
        same("ghostmem run --mmap=1M 2to3");
        same("ghostmem run --mmap 2to3 --mmap 1M");
        same("ghostmem run -- prog --mmap 1M");
        same("ghostmem run prog --mmap 1M");
        same("ghostmem run --limit --mmap 1M");
        same("ghostmem demo --mmap 1M");
    }
}
