//! The frames of a set one by one: what each is called, and where it came from.

use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use super::record::FrameMetadata;
use super::store::FrameStore;
use crate::error::{Error, Result};

/// A frame, and where it came from if that is known.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listed {
    /// Its name in the set.
    pub key: String,
    /// Path of the video or picture in the folder that was sampled.
    pub name: Option<String>,
    /// Time in the video, in seconds.
    pub seconds: Option<f64>,
}

/// All frames of the frame set, the tar shards or the folder of pictures at `path`, in its order.
///
/// # Errors
/// If there is no picture, or what is stored beside one cannot be read.
pub fn list(path: &Path) -> Result<Vec<Listed>> {
    let store = FrameStore::open(path)?;
    let of = |index: usize| {
        let metadata = store.metadata(index)?.filter(|json| json.get("perceptual_hash").is_some());
        let metadata = metadata.map(serde_json::from_value::<FrameMetadata>).transpose();
        let metadata = metadata.map_err(|e| Error::bad_file(path, format!("{}: {e}", store.key(index))))?;
        let (name, seconds) = metadata.map(|m| (m.name, m.seconds)).unzip();
        Ok(Listed { key: store.key(index).into(), name, seconds })
    };
    (0..store.len()).into_par_iter().map(of).collect()
}
