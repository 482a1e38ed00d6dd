//! Checkpoints: the weights and everything else that a run needs to go on, in safetensors files.
//!
//! A checkpoint is a folder: `model.safetensors` (or, above 5 GB, numbered files with an index, as Hugging Face has it)
//! with `stage{s}.W1` and `stage{s}.W2` as `[row, column, map, channel, dy, dx]` and the whitening; `optimiser.safetensors`
//! with the sums of Adagrad; `state.json`. It is written beside its place and renamed when complete.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use ndarray::{Array1, Array2, Array4};
use safetensors::tensor::View;
use safetensors::{Dtype, SafeTensors};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Network;
use super::preprocess::{Transform, Whitening};
use super::stage::{Stage, Weights};
use crate::config::RunConfig;
use crate::error::{Error, Result};

/// Changes when files of older versions can no longer be read as they are.
const FORMAT: u32 = 1;

/// Weights that go into one file.
const FILE_BYTES: usize = 5_000_000_000;

/// The metadata of each file, JSON under the key `striate`.
#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    version: String,
    layout: String,
    config: RunConfig,
}

/// A tensor that is converted to its layout on disk when it is its turn to be written.
enum Tensor<'a> {
    Weights(&'a Stage, Weights, Vec<usize>),
    Values(Vec<usize>, Cow<'a, [f32]>),
}

impl View for Tensor<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        match self {
            Tensor::Weights(_, _, shape) | Tensor::Values(shape, _) => shape,
        }
    }
    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = Vec::with_capacity(self.data_len());
        match self {
            Tensor::Weights(stage, which, _) => {
                stage.for_each_weight(*which, |weight| bytes.extend_from_slice(&weight.to_le_bytes()));
            }
            Tensor::Values(_, values) => bytes.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        }
        Cow::Owned(bytes)
    }
    fn data_len(&self) -> usize {
        4 * self.shape().iter().product::<usize>()
    }
}

fn weight_tensors<'a>(network: &'a Network, arrays: [(&str, Weights); 2]) -> Vec<(String, Tensor<'a>)> {
    let of_stage = |(number, stage): (usize, &'a Stage)| {
        let s = &stage.shape;
        let size =
            [s.filtered.rows, s.filtered.cols, s.filtered.channels, s.input.channels, s.field, s.field];
        arrays.map(|(name, which)| {
            (format!("stage{number}.{name}"), Tensor::Weights(stage, which, size.to_vec()))
        })
    };
    (1..).zip(&network.stages).flat_map(of_stage).collect()
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
        Transform::Zca { mean, matrix, inverse } => {
            vec![tensor("mean", mean), tensor("matrix", matrix), tensor("inverse", inverse)]
        }
        Transform::Conv { filter } => vec![tensor("filter", filter)],
    }
}

/// Writes a checkpoint into the new folder `to`, whole or not at all; `state` is the training's own.
///
/// # Errors
/// The disk is full or the folder cannot be written; nothing that was there is touched.
pub fn save(
    to: &Path,
    config: &RunConfig,
    network: &Network,
    whitening: &Whitening,
    state: &impl Serialize,
) -> Result<()> {
    let partial = to.with_extension("partial");
    let parent = to.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(Error::io(parent, "create"))?;
    check_room(parent, network, whitening)?;
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(Error::io(&partial, "remove"))?;
    }
    fs::create_dir(&partial).map_err(Error::io(&partial, "create"))?;
    let written = write_all(&partial, config, network, whitening, state);
    if let Err(error) = written {
        // What is half written would only fill the disk; the error that matters is the first.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    fs::rename(&partial, to).map_err(Error::io(to, "move the finished checkpoint to"))?;
    sync(parent)
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
    let arrays = if network.stages.iter().any(Stage::has_sums) { 4 } else { 2 };
    let weights: usize = network.stages.iter().map(Stage::weight_count).sum();
    let others = match &whitening.transform {
        Transform::None => 0,
        Transform::Zca { mean, matrix, inverse } => mean.len() + matrix.len() + inverse.len(),
        Transform::Conv { filter } => filter.len(),
    };
    let need_bytes = 4 * (arrays * weights + others) as u64;
    let have_bytes = fs4::available_space(folder).map_err(Error::io(folder, "look at the free space of"))?;
    if have_bytes < need_bytes {
        let what = format!("a checkpoint in {}", folder.display());
        return Err(Error::NoRoom { what, need_bytes, have_bytes });
    }
    Ok(())
}

fn write_all(
    folder: &Path,
    config: &RunConfig,
    network: &Network,
    whitening: &Whitening,
    state: &impl Serialize,
) -> Result<()> {
    let mut tensors = whitening_tensors(whitening);
    tensors.extend(weight_tensors(network, [("W1", Weights::Encoder), ("W2", Weights::Decoder)]));
    write_model(folder, config, tensors)?;
    if network.stages.iter().any(Stage::has_sums) {
        let sums = weight_tensors(network, [("W1", Weights::EncoderSums), ("W2", Weights::DecoderSums)]);
        write_file(&folder.join("optimiser.safetensors"), config, sums)?;
    }
    let path = folder.join("state.json");
    let text = serde_json::to_string_pretty(state).expect("state is plain data");
    fs::write(&path, text + "\n").map_err(Error::io(&path, "write"))?;
    sync(&path)
}

/// `model.safetensors`, or numbered files and an index where one would be too large.
fn write_model(folder: &Path, config: &RunConfig, tensors: Vec<(String, Tensor)>) -> Result<()> {
    let mut files: Vec<Vec<(String, Tensor)>> = vec![Vec::new()];
    let mut bytes = 0;
    for (name, tensor) in tensors {
        bytes += tensor.data_len();
        if bytes > FILE_BYTES && files.last().is_some_and(|file| !file.is_empty()) {
            files.push(Vec::new());
            bytes = tensor.data_len();
        }
        files.last_mut().expect("starts with one").push((name, tensor));
    }
    let count = files.len();
    if count == 1 {
        return write_file(&folder.join("model.safetensors"), config, files.remove(0));
    }
    let mut places = BTreeMap::new();
    let mut total = 0;
    for (number, tensors) in (1..).zip(files) {
        let file = format!("model-{number:05}-of-{count:05}.safetensors");
        total += tensors.iter().map(|(_, tensor)| tensor.data_len()).sum::<usize>();
        places.extend(tensors.iter().map(|(name, _)| (name.clone(), file.clone())));
        write_file(&folder.join(file), config, tensors)?;
    }
    let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": places });
    let path = folder.join("model.safetensors.index.json");
    fs::write(&path, index.to_string()).map_err(Error::io(&path, "write"))
}

fn write_file(path: &Path, config: &RunConfig, tensors: Vec<(String, Tensor)>) -> Result<()> {
    let header = Header {
        format: FORMAT,
        version: env!("CARGO_PKG_VERSION").into(),
        layout: "row, column, map, channel, dy, dx".into(),
        config: config.clone(),
    };
    let header = serde_json::to_string(&header).expect("settings are plain data");
    // One key: a map of several would be written in an order that changes from run to run.
    let metadata = HashMap::from([("striate".to_owned(), header)]);
    safetensors::serialize_to_file(tensors, Some(metadata), path).map_err(|e| match e {
        safetensors::SafeTensorError::IoError(source) => Error::io(path, "write")(source),
        other => Error::bad_file(path, other.to_string()),
    })?;
    // The library makes files for their owner alone; a checkpoint is no secret.
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).map_err(Error::io(path, "write"))?;
    sync(path)
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

/// Safetensors files of a checkpoint, mapped into memory.
struct Files {
    folder: PathBuf,
    maps: Vec<(PathBuf, Mmap)>,
}

impl Files {
    /// The files that hold tensors of `model` or `optimiser`.
    fn open(folder: &Path, name: &str) -> Result<Files> {
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

    fn parsed(&self) -> Result<Vec<(&Path, SafeTensors<'_>, Header)>> {
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
            out.push((path.as_path(), tensors, header));
        }
        Ok(out)
    }
}

/// One tensor's values, if it is there and shaped as wanted.
fn values<'a>(
    files: &'a [(&Path, SafeTensors<'a>, Header)],
    folder: &Path,
    name: &str,
    shape: &[usize],
) -> Result<impl Iterator<Item = f32> + 'a> {
    let found = files.iter().find_map(|(path, tensors, _)| Some((path, tensors.tensor(name).ok()?)));
    let (path, view) = found.ok_or_else(|| Error::bad_file(folder, format!("tensor `{name}` is missing")))?;
    if view.dtype() != Dtype::F32 || view.shape() != shape {
        let problem =
            format!("tensor `{name}` is {:?} {:?}, expected F32 {shape:?}", view.dtype(), view.shape());
        return Err(Error::bad_file(path, problem));
    }
    Ok(view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("4 bytes"))))
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
        let config = parsed[0].2.config.clone().checked().map_err(wrong)?;
        let network = Network::zeros(&config, for_training)?;
        read_weights(&network, &parsed, &files.folder, [("W1", Weights::Encoder), ("W2", Weights::Decoder)])?;
        let whitening = read_whitening(&config, &parsed, &files.folder)?;
        if for_training && network.stages.iter().any(Stage::has_sums) {
            let files = Files::open(folder, "optimiser")?;
            let sums = [("W1", Weights::EncoderSums), ("W2", Weights::DecoderSums)];
            read_weights(&network, &files.parsed()?, &files.folder, sums)?;
        }
        Ok(Checkpoint { config, network, whitening })
    }
}

fn read_weights(
    network: &Network,
    files: &[(&Path, SafeTensors, Header)],
    folder: &Path,
    arrays: [(&str, Weights); 2],
) -> Result<()> {
    for (number, stage) in network.stages.iter().enumerate().map(|(index, stage)| (index + 1, stage)) {
        let s = &stage.shape;
        let size =
            [s.filtered.rows, s.filtered.cols, s.filtered.channels, s.input.channels, s.field, s.field];
        for (name, which) in arrays {
            let (name, mut finite) = (format!("stage{number}.{name}"), true);
            stage.set_weights(
                which,
                values(files, folder, &name, &size)?.inspect(|w| finite &= w.is_finite()),
            );
            if !finite {
                return Err(Error::bad_file(folder, format!("tensor `{name}` holds what is no number")));
            }
        }
    }
    Ok(())
}

fn read_whitening(
    config: &RunConfig,
    files: &[(&Path, SafeTensors, Header)],
    folder: &Path,
) -> Result<Whitening> {
    use crate::config::Preprocess;
    let shape = config.input_shape();
    let (n, channels) = (shape.len(), shape.channels);
    let read = |name: &str, shape: &[usize]| -> Result<Vec<f32>> {
        Ok(values(files, folder, &format!("whitening.{name}"), shape)?.collect())
    };
    let square = |name: &str| -> Result<Array2<f32>> {
        Ok(Array2::from_shape_vec((n, n), read(name, &[n, n])?).expect("shape was checked"))
    };
    let transform = match config.input.preprocess {
        Preprocess::None => Transform::None,
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

/// The state that was saved with the checkpoint in `folder`.
///
/// # Errors
/// `state.json` is missing or not what it should be.
pub fn read_state<T: DeserializeOwned>(folder: &Path) -> Result<T> {
    let path = folder.join("state.json");
    let text = fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
    serde_json::from_str(&text).map_err(|e| Error::bad_file(&path, format!("not the state of a run: {e}")))
}

/// The newest complete checkpoint in `RUN/checkpoints`, if there is one.
pub fn latest(run: &Path) -> Option<PathBuf> {
    let mut found = all(run);
    found.pop()
}

/// All complete checkpoints of a run, from the oldest.
pub fn all(run: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    // Other folders are the user's: they are neither read nor removed.
    let number = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("step-")?.parse::<u64>().ok();
    let is_checkpoint = |path: &PathBuf| path.is_dir() && number(path).is_some();
    let mut found: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_checkpoint).collect();
    found.sort();
    found
}

/// The newest checkpoint of a run, read.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn load_latest(run: &Path, for_training: bool) -> Result<Checkpoint> {
    if !run.is_dir() {
        return Err(Error::bad_file(run, "not a run: no such folder"));
    }
    let folder = latest(run).ok_or_else(|| Error::bad_file(run, "not a run: it has no checkpoint"))?;
    Checkpoint::load(&folder, for_training)
}
