//! What does each unit prefer, what does it detect, and what does it not mind? Optimised pictures, the frames that drive it most, how
//! well it tells some pictures from others, its tuning to gratings and bars, and what changes of a picture it is invariant to.
//! What do all units together say of a frame? Their values in a file, the frames most like a picture, and a map of frames.

pub mod controls;
pub mod detector;
pub mod evaluate;
pub mod explain;
pub mod features;
pub mod invariance;
pub mod look;
pub mod map;
pub mod neighbours;
pub mod responses;
pub mod screen;
pub mod statistics;
pub mod stimulus;
pub mod top;
pub mod truth;
pub mod tuning;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::geometry::{Kind, MapShape};
use crate::network::{Network, Unit};

/// Pictures that go through the network together, where nothing asks for more.
pub const BATCH: usize = 96;

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

/// The one stage asked for, counted from 0; the top one if none is.
///
/// # Errors
/// As [`stages`].
pub fn stage(asked: Option<usize>, count: usize) -> Result<usize> {
    Ok(stages(asked.as_slice(), count)?.pop().expect("a network has stages"))
}

/// A unit by name: `stage:map:row:col`, the stage from 1, all else from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnitName {
    /// Its stage, from 1.
    pub stage: usize,
    /// Its place.
    pub unit: Unit,
}

impl FromStr for UnitName {
    type Err = String;
    fn from_str(text: &str) -> Result<UnitName, String> {
        let numbers: Option<Vec<usize>> = text.split(':').map(|part| part.parse().ok()).collect();
        match numbers.as_deref() {
            Some(&[stage, map, row, col]) => Ok(UnitName { stage, unit: Unit { map, row, col } }),
            _ => Err("expected stage:map:row:col, such as 3:17:0:2".into()),
        }
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let UnitName { stage, unit: Unit { map, row, col } } = self;
        write!(f, "{stage}:{map}:{row}:{col}")
    }
}

impl UnitName {
    /// Refuses a unit that the network does not have.
    ///
    /// # Errors
    /// Names it, and what there is.
    pub fn check(&self, network: &Network, kind: Kind) -> Result<()> {
        let UnitName { stage, unit: Unit { map, row, col } } = *self;
        let refuse =
            |want: String| Err(Error::Setting { key: "--units".into(), got: self.to_string(), want });
        let count = network.stages.len();
        if !(1..=count).contains(&stage) {
            return refuse(format!("a stage from 1 to {count}"));
        }
        let MapShape { channels, rows, cols } = network.shape(stage - 1, kind);
        if map >= channels || row >= rows || col >= cols {
            return refuse(format!(
                "of stage {stage} a map below {channels}, a row below {rows} and a column below {cols}"
            ));
        }
        Ok(())
    }
}

/// The value below which a share of sorted ones lies, between neighbours in proportion.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}
