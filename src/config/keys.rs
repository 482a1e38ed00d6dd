//! Keys as users write them: replaced by `--set`, refused with the nearest valid one, named in errors.

use toml::{Table, Value};

use super::{Input, Stage, Training};
use crate::error::{Error, Result};

/// Applies one `key=value`.
pub(super) fn set(table: &mut Table, item: &str) -> Result<()> {
    let usage =
        |got: &str, want: &str| Error::Setting { key: "--set".into(), got: got.into(), want: want.into() };
    let (key, text) = item.split_once('=').ok_or_else(|| usage(item, "KEY=VALUE"))?;
    let (key, text) = (key.trim(), text.trim());
    // What is no TOML value is taken as a string, so that `--set input.preprocess=none` needs no quotes.
    let value = format!("v = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut t| t.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()));
    let unknown = || Error::UnknownSetting { key: key.to_owned(), nearest: nearest(key) };
    match key.split('.').collect::<Vec<_>>()[..] {
        ["stages", number, name] => {
            let stages = table.get_mut("stages").and_then(Value::as_array_mut).ok_or_else(unknown)?;
            let count = stages.len();
            let stage = number
                .parse::<usize>()
                .ok()
                .and_then(|n| stages.get_mut(n.checked_sub(1)?))
                .and_then(Value::as_table_mut)
                .ok_or_else(|| usage(key, &format!("a stage from 1 to {count}")))?;
            stage.insert(name.to_owned(), value);
        }
        [section, name] if section != "stages" => {
            let section = table.entry(section).or_insert_with(|| Value::Table(Table::new()));
            section.as_table_mut().ok_or_else(unknown)?.insert(name.to_owned(), value);
        }
        ["stages" | "input" | "training", ..] => {
            return Err(usage(item, "one setting, such as training.rate=0.01 or stages.2.maps=32"));
        }
        _ => return Err(unknown()),
    }
    Ok(())
}

/// Every valid key, from the defaults themselves; stages under `stages`.
fn known_keys() -> Vec<String> {
    let keys = |section: &str, value: Table| -> Vec<String> {
        value.keys().map(|name| format!("{section}.{name}")).collect()
    };
    let table = |v: Result<Table, _>| v.expect("settings are plain tables");
    [
        keys("input", table(Table::try_from(Input::default()))),
        keys("stages", table(Table::try_from(Stage::default()))),
        keys("training", table(Table::try_from(Training::default()))),
    ]
    .concat()
}

pub(super) fn refuse_unknown(table: &Table) -> Result<()> {
    let known = known_keys();
    let check = |path: String, plain: String| match known.contains(&plain) {
        true => Ok(()),
        false => Err(Error::UnknownSetting { nearest: nearest(&plain), key: path }),
    };
    for (section, value) in table {
        match (section.as_str(), value) {
            ("input" | "training", Value::Table(entries)) => {
                entries.keys().try_for_each(|k| check(format!("{section}.{k}"), format!("{section}.{k}")))?;
            }
            ("stages", Value::Array(stages)) => {
                for (index, entries) in
                    stages.iter().enumerate().filter_map(|(i, s)| Some((i, s.as_table()?)))
                {
                    let path = |k: &str| format!("stages.{}.{k}", index + 1);
                    entries.keys().try_for_each(|k| check(path(k), format!("stages.{k}")))?;
                }
            }
            ("input" | "training" | "stages", _) => {} // the wrong type, which the typed reading names
            _ => return Err(Error::UnknownSetting { key: section.clone(), nearest: nearest(section) }),
        }
    }
    Ok(())
}

/// The valid key most like `key`: the same name in another section, or a similar spelling.
fn nearest(key: &str) -> Option<String> {
    let without_number = |key: &str| {
        key.split('.').filter(|part| part.parse::<usize>().is_err()).collect::<Vec<_>>().join(".")
    };
    let wanted = without_number(key);
    let name = |key: &str| key.rsplit('.').next().unwrap_or(key).to_owned();
    let sections = ["input", "stages", "training"].map(str::to_owned);
    known_keys()
        .into_iter()
        .chain(sections)
        .map(|known| {
            let whole = strsim::jaro_winkler(&known, &wanted);
            // `learning_rate` means `rate`, although `rate_end` is spelt more like it.
            let word = f64::from(u8::from(name(&wanted).split('_').any(|word| word == name(&known))));
            (whole.max(0.98 * strsim::jaro_winkler(&name(&known), &name(&wanted))).max(0.99 * word), known)
        })
        .filter(|(score, _)| *score > 0.75)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, known)| known)
}

/// What a Rust type is to users.
pub(super) fn plain_type(want: &str) -> &str {
    match want {
        "usize" | "u64" => "a whole number, 0 or more",
        "f64" => "a number",
        other => other,
    }
}

/// `stages[0].maps` as users write it: `stages.1.maps`.
pub(super) fn one_based(path: &str) -> String {
    let mut out = String::new();
    for part in path.split('[') {
        match part.split_once(']') {
            Some((index, rest)) => {
                let index: usize = index.parse().unwrap_or(0);
                out += &format!(".{}{rest}", index + 1);
            }
            None => out += part,
        }
    }
    out
}
