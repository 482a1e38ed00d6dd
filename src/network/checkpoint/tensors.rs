//! Arrays of numbers that belong to a network, in a folder like a checkpoint's: read-outs above all.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde::Serialize;

use super::read::Files;
use super::{About, Sum, Tensor, new_folder, parent, remove, rename_finished, write_model, write_state};
use crate::config::RunConfig;
use crate::error::{Error, Result};

/// Numbers by name, each with its shape.
pub type Tensors = HashMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes arrays into the folder `to`, in place of older ones, whole or not at all; `state` says what they are. `config` is that of the
/// network that they belong to, `data` tells what they were learned from.
///
/// # Errors
/// The folder cannot be written.
pub fn save_tensors(
    to: &Path,
    config: &RunConfig,
    data: &str,
    tensors: &[(String, Vec<usize>, &[f32])],
    state: &impl Serialize,
) -> Result<()> {
    let parent = parent(to);
    fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
    let partial = new_folder(to)?;
    let written = write(&partial, About { config, data }, tensors)
        .and_then(|sums| write_state(&partial, state, sums))
        .and_then(|()| if to.exists() { replace(&partial, to) } else { rename_finished(&partial, to) });
    if written.is_err() {
        // What is half written would only fill the disk; the error that matters is the first.
        let _ = fs::remove_dir_all(&partial);
    }
    written
}

fn write(folder: &Path, about: About, tensors: &[(String, Vec<usize>, &[f32])]) -> Result<Vec<Sum>> {
    let named = tensors
        .iter()
        .map(|(name, shape, values)| (name.clone(), Tensor::Values(shape.clone(), Cow::Borrowed(*values))));
    write_model(folder, about, named.collect())
}

/// Puts a new folder in the place of an older one.
fn replace(partial: &Path, to: &Path) -> Result<()> {
    let old = to.with_extension("old");
    if old.exists() {
        fs::remove_dir_all(&old).map_err(Error::io(&old, "remove"))?;
    }
    fs::rename(to, &old).map_err(Error::io(to, "replace"))?;
    rename_finished(partial, to)?;
    remove(&old)
}

/// What [`save_tensors`] wrote into a folder, and the settings of the network that it belongs to.
///
/// # Errors
/// A file is missing, truncated, of another format, or holds what is no number.
pub fn load_tensors(folder: &Path) -> Result<(RunConfig, Tensors)> {
    let files = Files::open(folder, "model")?;
    let parsed = files.parsed()?;
    let config = parsed[0].header.config.clone().checked();
    let config = config.map_err(|e| Error::bad_file(folder, format!("not a whole checkpoint: {e}")))?;
    let mut all = Tensors::new();
    for file in &parsed {
        all.extend(file.values()?);
    }
    Ok((config, all))
}

/// One of the arrays, which must have this shape.
///
/// # Errors
/// `folder` does not hold it.
pub fn take(folder: &Path, tensors: &mut Tensors, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    match tensors.remove(name) {
        Some((found, values)) if found == shape => Ok(values),
        Some((found, _)) => {
            Err(Error::bad_file(folder, format!("tensor `{name}` is {found:?}, expected {shape:?}")))
        }
        None => Err(Error::bad_file(folder, format!("tensor `{name}` is missing"))),
    }
}
