//! Checkpoints that several processes write together, each those weights that it holds; no process needs to see all of them.
//! [`begin`] makes the folder, each writes its [`Part`] into it, and [`finish`] makes it a checkpoint.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{
    About, Blocks, Sum, new_folder, rename_finished, weight_tensors, whitening_tensors, write_file,
    write_state, write_tensors,
};
use crate::config::RunConfig;
use crate::error::Result;
use crate::network::Network;
use crate::network::preprocess::Whitening;

/// What a process wrote of a checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// Its files and their hashes.
    sums: Vec<Sum>,
    /// Which file each tensor of the model is in, and of the optimiser.
    tensors: [BTreeMap<String, String>; 2],
    bytes: [usize; 2],
}

/// Makes the folder that a checkpoint `to` is written in until it is complete, and returns it.
///
/// # Errors
/// It cannot be made.
pub fn begin(to: &Path) -> Result<PathBuf> {
    new_folder(to)
}

/// Writes the share `number` of `count` of the weights, the blocks that `share` says of each stage (from 0), into the folder that
/// [`begin`] returned; `data` tells the frames that were learned from.
///
/// # Errors
/// The disk is full, or the folder cannot be written.
pub fn write(
    folder: &Path,
    (config, data): (&RunConfig, &str),
    network: &Network,
    share: &dyn Fn(usize) -> Range<usize>,
    (number, count): (usize, usize),
) -> Result<Part> {
    let (about, mut part) = (About { config, data }, Part::default());
    let (model, optimiser) = (
        format!("model-{:05}-of-{:05}.safetensors", number + 2, count + 1),
        format!("optimiser-{:05}-of-{count:05}.safetensors", number + 1),
    );
    let all = [(model, weight_tensors(network, Blocks::arrays, Some(share)))];
    let has_sums = config.training.optimiser.remembers();
    let sums = has_sums.then(|| (optimiser, weight_tensors(network, Blocks::sum_arrays, Some(share))));
    for (which, (file, tensors)) in all.into_iter().chain(sums).enumerate() {
        part.bytes[which] = tensors.iter().map(|(_, tensor)| tensor.bytes()).sum();
        part.tensors[which] = tensors.iter().map(|(name, _)| (name.clone(), file.clone())).collect();
        part.sums.push(write_tensors(folder, &file, about, tensors)?);
    }
    Ok(part)
}

/// Makes a checkpoint `to` of the folder that [`begin`] returned and the `parts` that were written into it.
///
/// # Errors
/// The disk is full, or the folder cannot be written.
pub fn finish(
    to: &Path,
    (config, data): (&RunConfig, &str),
    whitening: &Whitening,
    state: &impl Serialize,
    parts: &[Part],
) -> Result<()> {
    let folder = to.with_extension("partial");
    let tensors = whitening_tensors(whitening);
    let file = format!("model-{:05}-of-{:05}.safetensors", 1, parts.len() + 1);
    let mut own = Part::default();
    own.bytes[0] = tensors.iter().map(|(_, tensor)| tensor.bytes()).sum();
    own.tensors[0] = tensors.iter().map(|(name, _)| (name.clone(), file.clone())).collect();
    own.sums.push(write_tensors(&folder, &file, About { config, data }, tensors)?);
    let all = || parts.iter().chain([&own]);
    let mut sums: Vec<Sum> = all().flat_map(|part| part.sums.clone()).collect();
    for (which, name) in ["model", "optimiser"].into_iter().enumerate() {
        let places: BTreeMap<&String, &String> = all().flat_map(|part| &part.tensors[which]).collect();
        if places.is_empty() {
            continue;
        }
        let total: usize = all().map(|part| part.bytes[which]).sum();
        let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": places });
        let name = format!("{name}.safetensors.index.json");
        sums.push(write_file(&folder, &name, |write| write(index.to_string().as_bytes()))?);
    }
    sums.sort_by(|(left, _), (right, _)| left.cmp(right));
    let written = write_state(&folder, state, sums);
    if written.is_err() {
        // What is half written would only fill the disk; the error that matters is the first.
        let _ = fs::remove_dir_all(&folder);
    }
    written?;
    rename_finished(&folder, to)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::Stage;
    use crate::network::checkpoint::{Checkpoint, check};

    const TINY: &str = include_str!("../../../configs/tiny.toml");

    fn all(network: &Network) -> Vec<f32> {
        let arrays = |stage: &Stage| [stage.arrays(), stage.sum_arrays()].concat();
        let values = |stage: &Stage| -> Vec<f32> {
            arrays(stage).iter().flat_map(|&(_, which)| stage.weights(which)).collect()
        };
        network.stages.iter().flat_map(values).collect()
    }

    /// As processes write it, each of which holds its share only.
    fn write_together(folder: &Path, config: &RunConfig, count: usize) -> PathBuf {
        let to = folder.join(format!("step-{count:010}"));
        let partial = begin(&to).unwrap();
        let parts: Vec<Part> = (0..count)
            .map(|number| {
                let network = Network::new(config, 5).unwrap();
                let blocks = |stage: usize| {
                    let all = network.stages[stage].blocks.all().len();
                    number * all / count..(number + 1) * all / count
                };
                for (stage, at) in network.stages.iter().zip(0..) {
                    stage.blocks.keep_only(blocks(at));
                    stage.blocks.all()[blocks(at)].iter().for_each(|block| {
                        let arrays = &mut *block.write();
                        (0..arrays.encoder_sums.len()).for_each(|n| arrays.encoder_sums.set(n, n as f32));
                    });
                }
                write(&partial, (config, "frames"), &network, &blocks, (number, count)).unwrap()
            })
            .collect();
        let whitening = Whitening { shape: config.input_shape(), transform: super::super::Transform::None };
        finish(&to, (config, "frames"), &whitening, &7, &parts).unwrap();
        to
    }

    #[test]
    fn what_many_wrote_is_read_as_one_and_checks() {
        for settings in [&["training.precision=bf16"][..], &["stages.1.tied=true"], &[]] {
            let settings = [&["input.preprocess=none"], settings].concat();
            let settings: Vec<String> = settings.iter().map(|text| text.to_string()).collect();
            let config = RunConfig::parse(TINY, &settings).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let read = |count| {
                let checkpoint = write_together(folder.path(), &config, count);
                let checks = check(&checkpoint).unwrap();
                assert!(checks.iter().all(|check| check.problem.is_none()), "{checks:?}");
                all(&Checkpoint::load(&checkpoint, true).unwrap().network)
            };
            let one = read(1);
            for count in [2, 3, 7] {
                assert!(read(count) == one, "{count} processes");
            }
            let first = Network::new(&config, 5).unwrap();
            let read = Checkpoint::load(&folder.path().join("step-0000000003"), true).unwrap().network;
            for &(_, which) in first.stages[1].arrays() {
                assert_eq!(read.stages[1].weights(which), first.stages[1].weights(which));
            }
        }
    }

    #[test]
    fn a_part_that_is_missing_is_named() {
        let config = RunConfig::parse(TINY, &["input.preprocess=none".into()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let checkpoint = write_together(folder.path(), &config, 3);
        let index = checkpoint.join("model.safetensors.index.json");
        let without: String = fs::read_to_string(&index).unwrap().replace("00003-of-00004", "00002-of-00004");
        fs::write(&index, without).unwrap();
        let error = Checkpoint::load(&checkpoint, true).err().unwrap().to_string();
        assert!(error.contains("stage1.W1` lacks the units from"), "{error}");
    }
}
