//! Checkpoints: the weights and everything else that a run needs to go on, in safetensors files.
//!
//! A checkpoint is a folder: `model.safetensors` (or, above 5 GB, numbered files with an index, as Hugging Face has it)
//! with `stage{s}.W1` and `stage{s}.W2` as `[row, column, map, channel, dy, dx]` and the whitening; `optimiser.safetensors`
//! with the sums of Adagrad; `state.json`; and `SHA256SUMS` of all these, as `sha256sum --check` reads them. It is written
//! beside its place and renamed when complete. Weights are converted on their way, some blocks at a time, so that
//! writing and reading need no memory of the size of the weights.

mod check;
mod read;
pub mod share;
mod tensors;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{channel, sync_channel};
use std::thread;

use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Network;
use super::preprocess::{Transform, Whitening};
use super::stage::Stage;
use super::weights::{Blocks, Weights};
use crate::config::{Precision, RunConfig};
use crate::error::{Error, Result};
use crate::geometry::StageShape;
use crate::rng;
pub use check::{Check, check};
pub use read::{load_into, load_whitening};
pub use tensors::{Tensors, load_tensors, save_tensors, take};

/// Changes when files of older versions can no longer be read as they are.
const FORMAT: u32 = 1;

/// Weights that go into one file.
const FILE_BYTES: usize = 5_000_000_000;

/// Weights that are converted at a time, as far as whole blocks allow.
const BLOCK_BYTES: usize = 16 << 20;

/// Comes after the name of a tensor in that of a piece of it.
const PIECE: &str = ".units-";

/// Hashes of the other files of a checkpoint.
const SUMS: &str = "SHA256SUMS";

/// The metadata of each file, JSON under the key `striate`.
#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    version: String,
    layout: String,
    /// What it was trained on; files of older versions do not say.
    #[serde(default)]
    data: String,
    config: RunConfig,
}

/// Which arrays of a stage, and their names in files.
type NamedArrays = fn(&Blocks) -> &'static [(&'static str, Weights)];

/// A tensor that is converted to its layout on disk when it is its turn to be written.
enum Tensor<'a> {
    Weights(&'a Stage, Weights, Range<usize>),
    Values(Vec<usize>, Cow<'a, [f32]>),
}

impl Tensor<'_> {
    fn shape(&self) -> Vec<usize> {
        match self {
            Tensor::Weights(stage, _, blocks) if blocks.len() == stage.blocks.all().len() => {
                shape_in_files(&stage.shape).to_vec()
            }
            Tensor::Weights(stage, _, blocks) => {
                let (s, numbers) = (&stage.shape, stage.in_files(blocks.clone()).len());
                vec![numbers / s.taps(), s.input.channels, s.field, s.field]
            }
            Tensor::Values(shape, _) => shape.clone(),
        }
    }

    fn dtype(&self) -> Dtype {
        match self {
            Tensor::Weights(stage, ..) => dtype_of(stage.precision()),
            Tensor::Values(..) => Dtype::F32,
        }
    }

    fn bytes(&self) -> usize {
        self.dtype().bitsize() / 8 * self.shape().iter().product::<usize>()
    }

    fn write(&self, to: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        match self {
            Tensor::Weights(stage, which, blocks) => write_weights(stage, (*which, blocks), to),
            Tensor::Values(_, values) => {
                to(&values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
            }
        }
    }
}

/// Some blocks at a time: a thread converts the next while the last are written.
fn write_weights(
    stage: &Stage,
    (which, blocks): (Weights, &Range<usize>),
    to: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let at_once = blocks_at_once(stage);
    let convert = |numbers: Range<usize>, converted: &mut Vec<Vec<u8>>| {
        converted.resize_with(numbers.len(), Vec::new);
        converted.par_iter_mut().zip(numbers).for_each(|(bytes, number)| {
            bytes.clear();
            match stage.precision() {
                Precision::F32 => {
                    stage.for_each_weight(which, number, |w| bytes.extend_from_slice(&w.to_le_bytes()));
                }
                // The upper half of the bits is all of them.
                Precision::Bf16 => stage.for_each_weight(which, number, |w| {
                    bytes.extend_from_slice(&w.to_le_bytes()[2..]);
                }),
            }
        });
    };
    let (converted, ready) = sync_channel::<Vec<Vec<u8>>>(1);
    let (written, emptied) = channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            for first in blocks.clone().step_by(at_once) {
                let mut some = emptied.try_recv().unwrap_or_default();
                convert(first..(first + at_once).min(blocks.end), &mut some);
                // Nobody takes them where writing has failed.
                if converted.send(some).is_err() {
                    return;
                }
            }
        });
        // By value: dropped where writing fails, which ends the thread.
        for some in ready {
            some.iter().try_for_each(|bytes| to(bytes))?;
            // After the last there is no one to take it.
            let _ = written.send(some);
        }
        Ok(())
    })
}

/// How weights are written: as they are stored.
fn dtype_of(precision: Precision) -> Dtype {
    match precision {
        Precision::F32 => Dtype::F32,
        Precision::Bf16 => Dtype::BF16,
    }
}

/// Sizes of a stage's arrays of weights in files: `[row, column, map, channel, dy, dx]`.
fn shape_in_files(s: &StageShape) -> [usize; 6] {
    [s.filtered.rows, s.filtered.cols, s.filtered.channels, s.input.channels, s.field, s.field]
}

/// Blocks that are converted together.
fn blocks_at_once(stage: &Stage) -> usize {
    let block_bytes = stage.precision().bytes() * stage.count() / stage.blocks.all().len();
    (BLOCK_BYTES / block_bytes.max(1)).max(rayon::current_num_threads())
}

/// Those of each stage's arrays that `arrays` names: whole, or the blocks that `share` says of each stage.
fn weight_tensors<'a>(
    network: &'a Network,
    arrays: NamedArrays,
    share: Option<&'a dyn Fn(usize) -> Range<usize>>,
) -> Vec<(String, Tensor<'a>)> {
    let of_stage = |(index, stage): (usize, &'a Stage)| {
        let all = 0..stage.blocks.all().len();
        let blocks = share.map_or(all.clone(), |share| share(index));
        let part = if blocks == all { String::new() } else { piece_suffix(stage, &blocks) };
        let tensor = move |&(name, which): &(&str, Weights)| {
            (format!("stage{}.{name}{part}", stage.number), Tensor::Weights(stage, which, blocks.clone()))
        };
        arrays(&stage.blocks).iter().map(tensor)
    };
    let all = network.stages.iter().enumerate().flat_map(of_stage);
    all.filter(|(_, tensor)| tensor.bytes() > 0).collect()
}

/// What is added to a tensor's name where it holds the filters of some simple units only, in the order `[row, column, map]`:
/// `.units-FIRST-END`.
fn piece_suffix(stage: &Stage, blocks: &Range<usize>) -> String {
    let Range { start, end } = stage.in_files(blocks.clone());
    let per_unit = stage.shape.taps();
    format!("{PIECE}{}-{}", start / per_unit, end / per_unit)
}

fn whitening_tensors(whitening: &Whitening) -> Vec<(String, Tensor<'_>)> {
    fn tensor<'a, D: ndarray::Dimension>(
        name: &str,
        array: &'a ndarray::Array<f32, D>,
    ) -> (String, Tensor<'a>) {
        let values = array.as_standard_layout().iter().copied().collect();
        (format!("whitening.{name}"), Tensor::Values(array.shape().to_vec(), Cow::Owned(values)))
    }
    match &whitening.transform {
        Transform::None => Vec::new(),
        Transform::Contrast { scale } | Transform::Lcn { scale, .. } => {
            let values = Cow::Borrowed(std::slice::from_ref(scale));
            vec![("whitening.scale".into(), Tensor::Values(vec![1], values))]
        }
        Transform::Zca { mean, matrix, inverse } => {
            vec![tensor("mean", mean), tensor("matrix", matrix), tensor("inverse", inverse)]
        }
        Transform::Conv { filter } => vec![tensor("filter", filter)],
    }
}

/// Writes a checkpoint into the new folder `to`, whole or not at all; `data` tells the frames that were learned from, `state` is the
/// training's own.
///
/// # Errors
/// The disk is full or the folder cannot be written; nothing that was there is touched.
pub fn save(
    to: &Path,
    config: &RunConfig,
    network: &Network,
    whitening: &Whitening,
    data: &str,
    state: &impl Serialize,
) -> Result<()> {
    let about = About { config, data };
    let parent = parent(to);
    fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
    check_room(parent, network, whitening)?;
    let partial = new_folder(to)?;
    let written = write_all(&partial, about, network, whitening, state);
    if let Err(error) = written {
        // What is half written would only fill the disk; the error that matters is the first.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    rename_finished(&partial, to)
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("."))
}

/// The new folder beside a checkpoint's place in which it is written.
fn new_folder(to: &Path) -> Result<PathBuf> {
    let partial = to.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(Error::io(&partial, "remove"))?;
    }
    fs::create_dir_all(&partial).map_err(Error::io(&partial, "create"))?;
    Ok(partial)
}

/// Gives a checkpoint that is complete its name.
fn rename_finished(partial: &Path, to: &Path) -> Result<()> {
    fs::rename(partial, to).map_err(Error::io(to, "move the finished checkpoint to"))?;
    sync(parent(to))
}

/// Waits until a file or folder is on the disk.
fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io(path, "write"))
}

/// Refuses if a checkpoint does not fit into what the disk of `folder` has left.
///
/// # Errors
/// [`Error::NoRoom`].
pub fn check_room(folder: &Path, network: &Network, whitening: &Whitening) -> Result<()> {
    let weights = |stage: &Stage| {
        let sums = if stage.has_sums() { stage.sum_arrays().len() } else { 0 };
        (stage.arrays().len() + sums) * stage.precision().bytes() * stage.count()
    };
    let weights: usize = network.stages.iter().map(weights).sum();
    let others = match &whitening.transform {
        Transform::None => 0,
        Transform::Contrast { .. } | Transform::Lcn { .. } => 1,
        Transform::Zca { mean, matrix, inverse } => mean.len() + matrix.len() + inverse.len(),
        Transform::Conv { filter } => filter.len(),
    };
    let need_bytes = (weights + 4 * others) as u64;
    let have_bytes = fs4::available_space(folder).map_err(Error::io(folder, "look at the free space of"))?;
    if have_bytes < need_bytes {
        let what = format!("a checkpoint in {}", folder.display());
        return Err(Error::NoRoom { what, need_bytes, have_bytes });
    }
    Ok(())
}

/// What the metadata of all files says.
#[derive(Clone, Copy)]
struct About<'a> {
    config: &'a RunConfig,
    data: &'a str,
}

fn write_all(
    folder: &Path,
    about: About,
    network: &Network,
    whitening: &Whitening,
    state: &impl Serialize,
) -> Result<()> {
    let mut tensors = whitening_tensors(whitening);
    tensors.extend(weight_tensors(network, Blocks::arrays, None));
    let mut sums = write_model(folder, about, tensors)?;
    if network.stages.iter().any(|stage| stage.has_sums()) {
        let tensors = weight_tensors(network, Blocks::sum_arrays, None);
        sums.push(write_tensors(folder, "optimiser.safetensors", about, tensors)?);
    }
    write_state(folder, state, sums)
}

/// The state of the training, and the hashes of all files of a checkpoint, of which those of `sums` are there.
fn write_state(folder: &Path, state: &impl Serialize, mut sums: Vec<Sum>) -> Result<()> {
    let text = serde_json::to_string_pretty(state).expect("state is plain data") + "\n";
    sums.push(write_file(folder, "state.json", |write| write(text.as_bytes()))?);
    let lines: String = sums.iter().map(|(name, hash)| format!("{hash}  {name}\n")).collect();
    write_file(folder, SUMS, |write| write(lines.as_bytes()))?;
    sync(folder)
}

/// Name of a file and the hash of its content.
type Sum = (String, String);

/// `model.safetensors`, or numbered files and an index where one would be too large.
fn write_model(folder: &Path, about: About, tensors: Vec<(String, Tensor)>) -> Result<Vec<Sum>> {
    let mut files: Vec<Vec<(String, Tensor)>> = vec![Vec::new()];
    let mut bytes = 0;
    for (name, tensor) in tensors {
        bytes += tensor.bytes();
        if bytes > FILE_BYTES && files.last().is_some_and(|file| !file.is_empty()) {
            files.push(Vec::new());
            bytes = tensor.bytes();
        }
        files.last_mut().expect("starts with one").push((name, tensor));
    }
    let count = files.len();
    if count == 1 {
        return Ok(vec![write_tensors(folder, "model.safetensors", about, files.remove(0))?]);
    }
    let (mut places, mut total, mut sums) = (BTreeMap::new(), 0, Vec::new());
    for (number, tensors) in (1..).zip(files) {
        let file = format!("model-{number:05}-of-{count:05}.safetensors");
        total += tensors.iter().map(|(_, tensor)| tensor.bytes()).sum::<usize>();
        places.extend(tensors.iter().map(|(name, _)| (name.clone(), file.clone())));
        sums.push(write_tensors(folder, &file, about, tensors)?);
    }
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": places });
    let name = "model.safetensors.index.json";
    sums.push(write_file(folder, name, |write| write(index.to_string().as_bytes()))?);
    Ok(sums)
}

/// A safetensors file, written as its tensors are converted.
fn write_tensors(folder: &Path, name: &str, about: About, mut tensors: Vec<(String, Tensor)>) -> Result<Sum> {
    let header = Header {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        layout: "row, column, map, channel, dy, dx".into(),
        data: about.data.into(),
        config: about.config.clone(),
    };
    let header = serde_json::to_string(&header).expect("settings are plain data");
    // One key: a map of several would be written in an order that changes from run to run.
    let metadata = HashMap::from([("striate".to_owned(), header)]);
    tensors.sort_by(|(left, _), (right, _)| left.cmp(right));
    let mut end = 0;
    let info = |(name, tensor): &(String, Tensor)| {
        let data_offsets = (end, end + tensor.bytes());
        end = data_offsets.1;
        (name.clone(), TensorInfo { dtype: tensor.dtype(), shape: tensor.shape(), data_offsets })
    };
    let infos = tensors.iter().map(info).collect();
    let metadata = Metadata::new(Some(metadata), infos).expect("one tensor after the other");
    let mut text = serde_json::to_vec(&metadata).expect("metadata is plain data");
    // The format aligns tensors to 8 bytes.
    text.resize(text.len().next_multiple_of(8), b' ');
    write_file(folder, name, |write| {
        write(&(text.len() as u64).to_le_bytes())?;
        write(&text)?;
        tensors.iter().try_for_each(|(_, tensor)| tensor.write(write))
    })
}

/// A file of what `content` gives to the function it is given, in turn.
fn write_file(
    folder: &Path,
    name: &str,
    content: impl FnOnce(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>,
) -> Result<Sum> {
    let path = folder.join(name);
    let file = File::create(&path).map_err(Error::io(&path, "write"))?;
    let mut hash = Sha256::new();
    let (more, wake) = sync_channel(1);
    let written = thread::scope(|scope| {
        // What is written goes on its way to the disk at once, not when the file is complete.
        let syncing = scope.spawn(|| wake.into_iter().try_for_each(|()| file.sync_data()));
        let mut write = |bytes: &[u8]| {
            hash.update(bytes);
            (&file).write_all(bytes)?;
            let _ = more.try_send(()); // full: it will see these bytes as well
            Ok(())
        };
        let written = content(&mut write);
        drop(more);
        let synced = syncing.join().expect("syncing does not panic");
        written.and(synced)
    });
    written.and_then(|()| file.sync_all()).map_err(Error::io(&path, "write"))?;
    Ok((name.to_owned(), hex(&hash.finalize())))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A checkpoint, read.
pub struct Checkpoint {
    /// The settings that it was made with.
    pub config: RunConfig,
    /// The network, with the optimiser's sums if they were asked for.
    pub network: Network,
    /// Its preprocessing.
    pub whitening: Whitening,
}

/// The state that was saved with the checkpoint in `folder`.
///
/// # Errors
/// `state.json` is missing or not what it should be.
pub fn read_state<T: DeserializeOwned>(folder: &Path) -> Result<T> {
    let path = folder.join("state.json");
    let text = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
    serde_json::from_str(&text).map_err(|e| Error::bad_file(&path, format!("not the state of a run: {e}")))
}

/// The settings of the checkpoint in `folder`.
///
/// # Errors
/// The model is missing, truncated or of another format.
pub fn read_config(folder: &Path) -> Result<RunConfig> {
    let files = read::Files::open(folder, "model")?;
    let config = files.parsed()?[0].header.config.clone().checked();
    config.map_err(|e| Error::bad_file(folder, format!("not a whole checkpoint: {e}")))
}

/// What tells the checkpoint in `folder` from every other: its name, and a number made of the hashes of its files.
///
/// # Errors
/// It has no hashes.
pub fn identity(folder: &Path) -> Result<String> {
    let path = folder.join(SUMS);
    let sums = fs::read(&path).map_err(Error::io(&path, "read"))?;
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    Ok(format!("{name} {:016x}", rng::stable_hash(&sums)))
}

/// Removes a checkpoint: what is left when this is interrupted is none.
///
/// # Errors
/// The folder cannot be changed.
pub fn remove(folder: &Path) -> Result<()> {
    let partial = folder.with_extension("partial");
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(Error::io(&partial, "remove"))?;
    }
    fs::rename(folder, &partial).map_err(Error::io(folder, "remove"))?;
    fs::remove_dir_all(&partial).map_err(Error::io(&partial, "remove"))
}

/// The newest complete checkpoint in `RUN/checkpoints`, if there is one.
pub fn latest(run: &Path) -> Option<PathBuf> {
    let mut found = all(run);
    found.pop()
}

/// The step in the name of a checkpoint.
pub fn step_of(checkpoint: &Path) -> Option<u64> {
    checkpoint.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
}

/// All complete checkpoints of a run, from the oldest.
pub fn all(run: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    // Other folders are the user's: they are neither read nor removed.
    let is_checkpoint = |path: &PathBuf| path.is_dir() && step_of(path).is_some();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_checkpoint).collect();
    found.sort();
    found
}

/// The newest checkpoint of a run.
///
/// # Errors
/// It is no run, or has none.
pub fn latest_of(run: &Path) -> Result<PathBuf> {
    if !run.is_dir() {
        return Err(Error::bad_file(run, "not a run: no such folder"));
    }
    latest(run).ok_or_else(|| Error::bad_file(run, "not a run: it has no checkpoint"))
}

/// The newest checkpoint of a run, read.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn load_latest(run: &Path, for_training: bool) -> Result<Checkpoint> {
    Checkpoint::load(&latest_of(run)?, for_training)
}
