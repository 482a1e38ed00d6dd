//! What does each unit prefer, and what does it detect? Optimised pictures, the frames that drive it most, and how well it tells
//! some pictures from others.

pub mod detector;
pub mod evaluate;
pub mod responses;
pub mod stimulus;
pub mod top;

use crate::error::{Error, Result};

/// Told of a new part: its name and how much there is to do.
pub type OnBegin = Box<dyn Fn(&str, usize) + Sync>;

/// Told of what is being done.
pub struct Progress {
    /// A new part begins: its name and how much there is to do.
    pub on_begin: OnBegin,
    /// So much more is done.
    pub on_add: Box<dyn Fn(usize) + Sync>,
}

impl Progress {
    /// Tells nobody.
    pub fn none() -> Progress {
        Progress { on_begin: Box::new(|_, _| ()), on_add: Box::new(|_| ()) }
    }

    pub(crate) fn begin(&self, what: &str, len: usize) {
        (self.on_begin)(what, len);
    }

    pub(crate) fn add(&self, count: usize) {
        (self.on_add)(count);
    }
}

/// The stages asked for, counted from 0 and in order, of a network of `count`; none asked for is all. `--stage` counts from 1.
///
/// # Errors
/// Names a stage that is not there.
pub fn stages(asked: &[usize], count: usize) -> Result<Vec<usize>> {
    if let Some(bad) = asked.iter().find(|stage| !(1..=count).contains(*stage)) {
        let (key, got, want) = ("--stage".into(), bad.to_string(), format!("a stage from 1 to {count}"));
        return Err(Error::Setting { key, got, want });
    }
    Ok((0..count).filter(|stage| asked.is_empty() || asked.contains(&(stage + 1))).collect())
}
