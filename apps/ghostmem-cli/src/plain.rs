//! Options of `run` that are made from the table of settings alone.
//!
//! A setting whose row says `plain` needs no line here: its name, help and default are the row's,
//! and how its value is read follows from its unit. What was given goes into the settings that the
//! library reads.

use std::os::unix::ffi::OsStrExt;
use std::path::{self, PathBuf};

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches, value_parser};
use ghostmem::settings::{RunSettings, SETTINGS, Setting, SettingUnit, escape};

use crate::size::{parse_nonzero_size, parse_slowdown};

/// What was given of the plain options: keys, and values as the library reads them.
#[derive(Clone, Debug, Default)]
pub(crate) struct PlainOptions(Vec<(&'static str, Vec<u8>)>);

impl PlainOptions {
    /// The settings as they are without options, changed by what was given.
    pub(crate) fn settings(&self) -> RunSettings {
        let mut settings = RunSettings::default();
        for (key, value) in &self.0 {
            settings.set(key, value);
        }
        settings
    }
}

/// The rows with their options and keys.
fn rows() -> impl Iterator<Item = (&'static Setting, &'static str, &'static str)> {
    let plain = SETTINGS.iter().filter(|row| row.plain);
    plain.filter_map(|row| Some((row, row.option?, row.key?)))
}

fn option(row: &Setting, name: &'static str) -> Arg {
    let mut help = row.text.trim_end_matches('.').to_owned();
    if !row.default.is_empty() {
        help.push_str(&format!(" [default: {}]", row.default));
    }
    let option = Arg::new(name).long(name).help(help);
    match row.unit {
        SettingUnit::Flag => option.action(ArgAction::SetTrue),
        SettingUnit::Path => option
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf)),
        SettingUnit::Bytes => option
            .value_name("SIZE")
            .value_parser(parse_nonzero_size)
            .allow_negative_numbers(true),
        SettingUnit::Share => option
            .value_name("SHARE")
            .value_parser(parse_slowdown)
            .allow_negative_numbers(true),
        _ => option.value_name("N").value_parser(value_parser!(u64)),
    }
}

/// What was given for one of them.
fn value(row: &Setting, name: &str, matches: &ArgMatches) -> Result<Option<Vec<u8>>, Error> {
    Ok(match row.unit {
        SettingUnit::Flag => matches.get_flag(name).then(|| b"1".to_vec()),
        SettingUnit::Path => {
            let given = matches.get_one::<PathBuf>(name);
            let absolute = given.map(path::absolute).transpose().map_err(|error| {
                Error::raw(ErrorKind::ValueValidation, format!("--{name}: {error}\n"))
            })?;
            absolute.map(|path| escape(path.as_os_str().as_bytes()))
        }
        _ => matches
            .get_one::<u64>(name)
            .map(|number| number.to_string().into_bytes()),
    })
}

impl Args for PlainOptions {
    fn augment_args(command: Command) -> Command {
        rows().fold(command, |command, (row, name, _)| {
            command.arg(option(row, name))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for PlainOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut given = Self::default();
        given.update_from_arg_matches(matches)?;
        Ok(given)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        for (row, name, key) in rows() {
            if let Some(value) = value(row, name, matches)? {
                self.0.push((key, value));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;

    fn given(words: &[&str]) -> RunSettings {
        let command = PlainOptions::augment_args(Command::new("run").no_binary_name(true));
        let matches = command.try_get_matches_from(words).unwrap();
        PlainOptions::from_arg_matches(&matches).unwrap().settings()
    }

    #[test]
    fn what_is_not_given_is_as_it_was() {
        assert_eq!(given(&[]), RunSettings::default());
    }

    #[test]
    fn every_plain_option_changes_its_setting() {
        for (row, name, _) in rows() {
            let option = format!("--{name}");
            let changed = match row.unit {
                SettingUnit::Flag => given(&[&option]),
                SettingUnit::Share => given(&[&option, "7%"]),
                _ => given(&[&option, "7"]),
            };
            assert_ne!(changed, RunSettings::default(), "{option}");
        }
        assert!(rows().count() > 3);
    }

    #[test]
    fn values_arrive_as_they_were_meant() {
        let settings = given(&["--memory-limit", "2G", "--stats-json", "/tmp/a;b%41.json"]);
        assert_eq!(settings.memory_limit, 2 << 30);
        assert_eq!(given(&["--slowdown", "2.5%"]).slowdown, 25_000);
        let path = Path::new("/tmp/a;b%41.json");
        assert_eq!(settings.stats_json.as_deref(), Some(path));
        assert!(!settings.stats && !settings.verbose);
    }
}
