//! Files of what was trained for a control.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::files;

/// Numbers by name, each with its shape.
pub type Tensors = HashMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes tensors, what they were made from, and how many steps they took, as safetensors.
///
/// # Errors
/// The file cannot be written.
pub fn save(
    path: &Path,
    plan: &impl Serialize,
    step: u64,
    tensors: &[(String, Vec<usize>, &[f32])],
) -> Result<()> {
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let all: Vec<(&String, &Vec<usize>, Vec<u8>)> =
        tensors.iter().map(|(name, shape, values)| (name, shape, bytes(values))).collect();
    let views = all.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).expect("as many bytes as values"))
    });
    let plan = serde_json::to_string(plan).expect("plain data");
    let metadata = [("plan".to_owned(), plan), ("step".to_owned(), step.to_string())];
    files::replace(path, serialize(views, Some(metadata.into())).expect("names differ"))
}

/// Tensors and steps in a file, if there is one and it was made from `plan`.
///
/// # Errors
/// The file cannot be read, or is damaged.
pub fn load<P: DeserializeOwned + PartialEq>(path: &Path, plan: &P) -> Result<Option<(u64, Tensors)>> {
    let bytes = match fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        read => read.map_err(Error::io(path, "read"))?,
    };
    let damaged = |problem: &dyn std::fmt::Display| Error::bad_file(path, format!("damaged: {problem}"));
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| damaged(&e))?;
    let of = |key: &str| metadata.metadata().as_ref().and_then(|map| map.get(key)).cloned();
    let saved = of("plan").and_then(|text| serde_json::from_str::<P>(&text).ok());
    if saved.as_ref() != Some(plan) {
        return Ok(None);
    }
    let step = of("step").and_then(|step| step.parse().ok()).ok_or_else(|| damaged(&"no step"))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|e| damaged(&e))?;
    let read = |(name, tensor): (String, TensorView)| {
        if tensor.dtype() != Dtype::F32 {
            return Err(damaged(&format!("{name} is {:?}", tensor.dtype())));
        }
        let values = tensor.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
        Ok((name, (tensor.shape().to_vec(), values.collect())))
    };
    let tensors = tensors.tensors().into_iter().map(read).collect::<Result<_>>()?;
    Ok(Some((step, tensors)))
}

/// One of the tensors, which must have this shape.
///
/// # Errors
/// `path` does not hold it.
pub fn take(path: &Path, tensors: &mut Tensors, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    match tensors.remove(name) {
        Some((found, values)) if found == shape => Ok(values),
        Some((found, _)) => {
            Err(Error::bad_file(path, format!("damaged: {name} is {found:?}, expected {shape:?}")))
        }
        None => Err(Error::bad_file(path, format!("damaged: it has no {name}"))),
    }
}
