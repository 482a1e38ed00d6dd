//! Reads a checkpoint from mapped files, a row of positions at a time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};
use ndarray::{Array1, Array2, Array4};
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::{Blocks, Checkpoint, FORMAT, Header, NamedArrays, dtype_of, shape_in_files};
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::network::Network;
use crate::network::preprocess::{Transform, Whitening, window};

/// Safetensors files of a checkpoint, mapped into memory.
pub(super) struct Files {
    pub(super) folder: PathBuf,
    pub(super) maps: Vec<(PathBuf, Mmap)>,
}

impl Files {
    /// The files that hold tensors of `model` or `optimiser`.
    pub(super) fn open(folder: &Path, name: &str) -> Result<Files> {
        let index = folder.join(format!("{name}.safetensors.index.json"));
        let mut names = vec![format!("{name}.safetensors")];
        if index.exists() {
            let text = fs::read_to_string(&index).map_err(Error::io(&index, "read"))?;
            #[derive(Deserialize)]
            struct Index {
                weight_map: BTreeMap<String, String>,
            }
            let parsed: Index = serde_json::from_str(&text)
                .map_err(|e| Error::bad_file(&index, format!("not an index of tensors: {e}")))?;
            names = parsed.weight_map.into_values().collect();
            names.sort();
            names.dedup();
        }
        let map = |name: String| {
            let path = folder.join(name);
            let file = File::open(&path).map_err(Error::io(&path, "read"))?;
            // SAFETY: a checkpoint is written once and renamed into place; nobody changes it while we read.
            let map = unsafe { Mmap::map(&file) }.map_err(Error::io(&path, "read"))?;
            Ok((path, map))
        };
        let maps = names.into_iter().map(map).collect::<Result<_>>()?;
        Ok(Files { folder: folder.into(), maps })
    }

    pub(super) fn parsed(&self) -> Result<Vec<Parsed<'_>>> {
        let parse = |path: &Path, bytes| -> Result<(SafeTensors<'_>, Header)> {
            let bad =
                |problem: String| Error::bad_file(path, format!("not a whole checkpoint file: {problem}"));
            let tensors = SafeTensors::deserialize(bytes).map_err(|e| bad(e.to_string()))?;
            let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| bad(e.to_string()))?;
            let header = metadata.metadata().as_ref().and_then(|m| m.get("striate"));
            let header = header.ok_or_else(|| bad("no `striate` in its metadata".into()))?;
            let format = serde_json::from_str::<serde_json::Value>(header).ok();
            let format = format.as_ref().and_then(|v| v["format"].as_u64());
            if format != Some(u64::from(FORMAT)) {
                let seen = format.map_or("none".into(), |f| f.to_string());
                return Err(bad(format!("its format is {seen}, this version reads {FORMAT}")));
            }
            let header: Header =
                serde_json::from_str(header).map_err(|e| bad(format!("its settings: {e}")))?;
            Ok((tensors, header))
        };
        let mut out = Vec::new();
        for (path, map) in &self.maps {
            let (tensors, header) = parse(path, &map[..])?;
            out.push(Parsed { path, map, tensors, header });
        }
        Ok(out)
    }
}

/// One of the files, its tensors found.
pub(super) struct Parsed<'a> {
    path: &'a Path,
    map: &'a Mmap,
    tensors: SafeTensors<'a>,
    pub(super) header: Header,
}

/// A tensor of numbers in a mapped file.
pub(super) struct Found<'a> {
    map: &'a Mmap,
    view: TensorView<'a>,
}

impl<'a> Found<'a> {
    /// The tensor, if it is there and shaped as wanted.
    pub(super) fn new(
        files: &[Parsed<'a>],
        folder: &Path,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<Found<'a>> {
        let found = files.iter().find_map(|file| Some((file, file.tensors.tensor(name).ok()?)));
        let missing = || Error::bad_file(folder, format!("tensor `{name}` is missing"));
        let (file, view) = found.ok_or_else(missing)?;
        if view.dtype() != dtype || view.shape() != shape {
            let (seen, size) = (view.dtype(), view.shape());
            let problem = format!("tensor `{name}` is {seen:?} {size:?}, expected {dtype:?} {shape:?}");
            return Err(Error::bad_file(file.path, problem));
        }
        Ok(Found { map: file.map, view })
    }

    /// Its values, all of them or those of one of `rows` parts.
    fn values(&self, row: usize, rows: usize) -> impl Iterator<Item = f32> + use<'a> {
        let data = self.view.data();
        let len = data.len() / rows;
        let bytes = self.view.dtype().bitsize() / 8;
        data[row * len..][..len].chunks_exact(bytes).map(move |number| {
            // Of a bf16 the upper half.
            let mut value = [0; 4];
            value[4 - bytes..].copy_from_slice(number);
            f32::from_le_bytes(value)
        })
    }

    /// Calls `work` with each of the numbers of `rows` parts and its values, on all threads, and lets the memory that a part
    /// of the mapped file took be used again. True if all values are finite.
    pub(super) fn for_each_row(
        &self,
        rows: usize,
        work: impl Fn(usize, &mut dyn Iterator<Item = f32>) + Sync,
    ) -> bool {
        let (start, len) =
            (self.view.data().as_ptr() as usize - self.map.as_ptr() as usize, self.view.data().len() / rows);
        let read = |row| {
            let mut finite = true;
            work(row, &mut self.values(row, rows).inspect(|value| finite &= value.is_finite()));
            // SAFETY: the map is of a file and only read, so what it loses is read from the file again. Advice only: without
            // it the system takes back the memory when it needs it.
            let _ =
                unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start + row * len, len) };
            finite
        };
        (0..rows).into_par_iter().map(read).reduce(|| true, |a, b| a && b)
    }
}

impl Checkpoint {
    /// Reads the checkpoint in `folder`; `for_training` reads the optimiser's sums as well.
    ///
    /// # Errors
    /// A file is missing, truncated, of another format, or a tensor is missing or misshapen.
    pub fn load(folder: &Path, for_training: bool) -> Result<Checkpoint> {
        let files = Files::open(folder, "model")?;
        let parsed = files.parsed()?;
        let wrong = |e: Error| Error::bad_file(folder, format!("not a whole checkpoint: {e}"));
        let config = parsed[0].header.config.clone().checked().map_err(wrong)?;
        let network = Network::zeros(&config, for_training)?;
        read_weights(&network, &parsed, &files.folder, Blocks::arrays)?;
        let whitening = read_whitening(&config, &parsed, &files.folder)?;
        if for_training && network.stages.iter().any(|stage| stage.has_sums()) {
            let files = Files::open(folder, "optimiser")?;
            read_weights(&network, &files.parsed()?, &files.folder, Blocks::sum_arrays)?;
        }
        Ok(Checkpoint { config, network, whitening })
    }
}

fn read_weights(network: &Network, files: &[Parsed], folder: &Path, arrays: NamedArrays) -> Result<()> {
    for (number, stage) in (1..).zip(&network.stages) {
        for &(name, which) in arrays(&stage.blocks) {
            let name = format!("stage{number}.{name}");
            let found =
                Found::new(files, folder, &name, dtype_of(stage.precision()), &shape_in_files(&stage.shape))?;
            let rows = stage.shape.filtered.rows;
            if !found.for_each_row(rows, |row, values| stage.set_weights(which, row, values)) {
                return Err(Error::bad_file(folder, format!("tensor `{name}` holds what is no number")));
            }
        }
    }
    Ok(())
}

pub(super) fn read_whitening(config: &RunConfig, files: &[Parsed], folder: &Path) -> Result<Whitening> {
    use crate::config::Preprocess;
    let shape = config.input_shape();
    let (n, channels) = (shape.len(), shape.channels);
    let read = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
        let name = format!("whitening.{name}");
        let values: Vec<f32> = Found::new(files, folder, &name, Dtype::F32, shape)?.values(0, 1).collect();
        match values.iter().all(|value| value.is_finite()) {
            true => Ok(values),
            false => Err(Error::bad_file(folder, format!("tensor `{name}` holds what is no number"))),
        }
    };
    let scale = || -> Result<f32> { Ok(read("scale", &[1])?[0]) };
    let square = |name: &str| -> Result<Array2<f32>> {
        Ok(Array2::from_shape_vec((n, n), read(name, &[n, n])?).expect("shape was checked"))
    };
    let transform = match config.input.preprocess {
        Preprocess::None => Transform::None,
        Preprocess::Contrast => Transform::Contrast { scale: scale()? },
        Preprocess::Lcn => Transform::Lcn { window: window(&config.input, shape), scale: scale()? },
        Preprocess::Zca => Transform::Zca {
            mean: Array1::from_vec(read("mean", &[n])?),
            matrix: square("matrix")?,
            inverse: square("inverse")?,
        },
        Preprocess::Conv => {
            let side = config.input.whitening_side();
            let size = [channels, channels, side, side];
            let filter = Array4::from_shape_vec(size, read("filter", &size)?).expect("shape was checked");
            Transform::Conv { filter }
        }
    };
    Ok(Whitening { shape, transform })
}
