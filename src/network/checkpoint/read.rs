//! Reads a checkpoint from mapped files, a row of positions at a time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::{Mmap, UncheckedAdvice};
use ndarray::{Array1, Array2, Array4};
use rayon::prelude::*;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use super::{Blocks, Checkpoint, FORMAT, Header, NamedArrays, PIECE, Tensors, dtype_of, shape_in_files};
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

impl Parsed<'_> {
    /// Its arrays of f32.
    pub(super) fn values(&self) -> Result<Tensors> {
        let values = |(name, view): (String, TensorView)| {
            expect(self, &name, &view, Dtype::F32, view.shape())?;
            let values: Vec<f32> =
                view.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
            match values.iter().all(|value| value.is_finite()) {
                true => Ok((name, (view.shape().to_vec(), values))),
                false => Err(Error::bad_file(self.path, format!("tensor `{name}` holds what is no number"))),
            }
        };
        self.tensors.tensors().into_iter().map(values).collect()
    }
}

/// A tensor of numbers in mapped files: whole, or in pieces, which it was written in by those that each held some of it.
pub(super) struct Found<'a> {
    /// Where each begins among all numbers, and what it is.
    pieces: Vec<(usize, &'a Mmap, TensorView<'a>)>,
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
        let Some((file, view)) = found else { return Found::in_pieces(files, folder, name, dtype, shape) };
        expect(file, name, &view, dtype, shape)?;
        Ok(Found { pieces: vec![(0, file.map, view)] })
    }

    /// The pieces of weights `[row, column, map, channel, dy, dx]`, each of filters `[channel, dy, dx]` of some simple units.
    fn in_pieces(
        files: &[Parsed<'a>],
        folder: &Path,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<Found<'a>> {
        let missing = || Error::bad_file(folder, format!("tensor `{name}` is missing"));
        let mut found = Vec::new();
        for file in files {
            for piece in file.tensors.names() {
                let units = piece.strip_prefix(name).and_then(|rest| rest.strip_prefix(PIECE));
                let Some((first, end)) = units.and_then(|units| units.split_once('-')) else { continue };
                let (Ok(first), Ok(end)) = (first.parse::<usize>(), end.parse::<usize>()) else { continue };
                let view = file.tensors.tensor(piece).map_err(|_| missing())?;
                let filters = [&[end.saturating_sub(first)], shape.get(3..).unwrap_or_default()].concat();
                expect(file, piece, &view, dtype, &filters)?;
                found.push((first, end, file.map, view));
            }
        }
        found.sort_by_key(|&(first, ..)| first);
        let per_unit: usize = shape.get(3..).unwrap_or_default().iter().product();
        let (mut next, mut pieces) = (0, Vec::new());
        for (first, end, map, view) in found {
            if first != next {
                let problem = format!("tensor `{name}` lacks the units from {next} to {first}");
                return Err(Error::bad_file(folder, problem));
            }
            pieces.push((first * per_unit, map, view));
            next = end;
        }
        let units: usize = shape.iter().take(3).product();
        match next {
            0 => Err(missing()),
            _ if next == units => Ok(Found { pieces }),
            _ => Err(Error::bad_file(folder, format!("tensor `{name}` has {next} units, expected {units}"))),
        }
    }

    /// The values in a range.
    fn values(&self, range: Range<usize>) -> impl Iterator<Item = f32> {
        self.parts(range).flat_map(|(_, view, part)| {
            let bytes = view.dtype().bitsize() / 8;
            view.data()[bytes * part.start..bytes * part.end].chunks_exact(bytes).map(move |number| {
                // Of a bf16 the upper half.
                let mut value = [0; 4];
                value[4 - bytes..].copy_from_slice(number);
                f32::from_le_bytes(value)
            })
        })
    }

    /// The pieces that hold some of a range, and what of each.
    fn parts(&self, range: Range<usize>) -> impl Iterator<Item = (&'a Mmap, &TensorView<'a>, Range<usize>)> {
        self.pieces.iter().filter_map(move |(first, map, view)| {
            let len = 8 * view.data().len() / view.dtype().bitsize();
            let part = range.start.saturating_sub(*first)..range.end.saturating_sub(*first).min(len);
            (!part.is_empty()).then_some((*map, view, part))
        })
    }

    /// Calls `work` with the number of each range and its values, on all threads, and lets the memory that it took of the mapped file
    /// be used again. True if all values are finite.
    pub(super) fn for_each(
        &self,
        ranges: &[Range<usize>],
        work: impl Fn(usize, &mut dyn Iterator<Item = f32>) + Sync,
    ) -> bool {
        let read = |(number, range): (usize, &Range<usize>)| {
            let mut finite = true;
            work(number, &mut self.values(range.clone()).inspect(|value| finite &= value.is_finite()));
            for (map, view, part) in self.parts(range.clone()) {
                let bytes = view.dtype().bitsize() / 8;
                let start = view.data().as_ptr() as usize - map.as_ptr() as usize + bytes * part.start;
                // SAFETY: the map is of a file and only read, so what it loses is read from the file again. Advice only: without
                // it the system takes back the memory when it needs it.
                let _ = unsafe {
                    map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, bytes * part.len())
                };
            }
            finite
        };
        ranges.par_iter().enumerate().map(read).reduce(|| true, |a, b| a && b)
    }
}

fn expect(file: &Parsed, name: &str, view: &TensorView, dtype: Dtype, shape: &[usize]) -> Result<()> {
    if view.dtype() != dtype || view.shape() != shape {
        let (seen, size) = (view.dtype(), view.shape());
        let problem = format!("tensor `{name}` is {seen:?} {size:?}, expected {dtype:?} {shape:?}");
        return Err(Error::bad_file(file.path, problem));
    }
    Ok(())
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
        load_into(&network, folder)?;
        let whitening = read_whitening(&config, &parsed, &files.folder)?;
        Ok(Checkpoint { config, network, whitening })
    }
}

/// Reads the weights of the checkpoint in `folder` into a network of its settings, and the optimiser's sums where the network has
/// them; of blocks that hold nothing, none.
///
/// # Errors
/// As [`Checkpoint::load`].
pub fn load_into(network: &Network, folder: &Path) -> Result<()> {
    let files = Files::open(folder, "model")?;
    read_weights(network, &files.parsed()?, &files.folder, Blocks::arrays)?;
    if network.stages.iter().any(|stage| stage.has_sums()) {
        let files = Files::open(folder, "optimiser")?;
        read_weights(network, &files.parsed()?, &files.folder, Blocks::sum_arrays)?;
    }
    Ok(())
}

/// Reads what is done to pictures before the first stage, of the checkpoint in `folder`.
///
/// # Errors
/// As [`Checkpoint::load`].
pub fn load_whitening(folder: &Path) -> Result<Whitening> {
    let files = Files::open(folder, "model")?;
    let parsed = files.parsed()?;
    let config = parsed[0].header.config.clone().checked();
    let config = config.map_err(|e| Error::bad_file(folder, format!("not a whole checkpoint: {e}")))?;
    read_whitening(&config, &parsed, folder)
}

fn read_weights(network: &Network, files: &[Parsed], folder: &Path, arrays: NamedArrays) -> Result<()> {
    for (number, stage) in (1..).zip(&network.stages) {
        for &(name, which) in arrays(&stage.blocks) {
            let name = format!("stage{number}.{name}");
            let found =
                Found::new(files, folder, &name, dtype_of(stage.precision()), &shape_in_files(&stage.shape))?;
            let held: Vec<usize> = (0..stage.blocks.all().len())
                .filter(|&block| !stage.blocks.all()[block].read().encoder.is_empty())
                .collect();
            let ranges: Vec<_> = held.iter().map(|&block| stage.in_files(block..block + 1)).collect();
            if !found.for_each(&ranges, |at, values| stage.set_block(which, held[at], values)) {
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
        let values: Vec<f32> =
            Found::new(files, folder, &name, Dtype::F32, shape)?.values(0..shape.iter().product()).collect();
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
