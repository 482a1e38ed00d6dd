//! A read-out: a classifier, and which network it reads what of. It is kept in a folder like a checkpoint's.

use std::fmt;
use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use super::head::{Head, Kind as HeadKind, Parameter};
use super::linear::{Fitted, Method, Tried, probabilities};
use super::tune;
use super::view::{Of, View};
use crate::analysis::explain::HeatMap;
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::geometry::{Kind, MapShape, Part, StageShape, needed};
use crate::kernels::{LANES, lanes_for};
use crate::network::Network;
use crate::network::checkpoint::{self, load_tensors, save_tensors, take};

/// Which weights the network has that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weights {
    /// Those that the run learned.
    Learned,
    /// Random ones of this seed, for comparison.
    Random(u64),
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Weights::Learned => write!(f, "the run's weights"),
            Weights::Random(seed) => write!(f, "random weights (seed {seed})"),
        }
    }
}

/// A read-out without its numbers: what it is, and what it was learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    /// The classifier.
    pub method: Method,
    /// What it sees.
    pub view: View,
    /// Of a network with which weights.
    pub weights: Weights,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// The checkpoint of the network, as [`identity`](checkpoint::identity) tells them apart.
    pub checkpoint: String,
    /// Where the pictures were.
    pub labels: Vec<String>,
    /// Pictures that it was fitted to.
    pub pictures: usize,
    /// Numbers that stand for a picture.
    pub features: usize,
    /// The maps that they are of, if they are all positions of one sublayer.
    #[serde(default)]
    pub shape: Option<MapShape>,
    /// The λ taken; none of what was learned by gradients.
    pub lambda: Option<f64>,
    /// All λ tried.
    pub tried: Vec<Tried>,
    /// How it was learned by gradients, and the network with it unless its rate is 0.
    #[serde(default)]
    pub tuning: Option<tune::Settings>,
    /// Seed of folds, and of which labels were used.
    pub seed: u64,
    /// Share of the labels that was used.
    pub share: f64,
}

impl About {
    /// Hidden units of its attention, if it has any.
    fn attention(&self) -> Option<usize> {
        self.tuning.as_ref().and_then(|tuning| match tuning.head {
            HeadKind::Attention(hidden) => Some(hidden),
            _ => None,
        })
    }
}

/// A read-out.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadOut {
    /// What it is.
    pub about: About,
    /// Its numbers.
    pub model: Model,
}

/// What makes numbers of the classes from features.
#[derive(Debug, Clone, PartialEq)]
pub enum Model {
    /// A weight for each class and feature.
    Linear {
        /// `[class, feature]`.
        weights: Array2<f32>,
        /// `[class]`.
        bias: Vec<f32>,
    },
    /// Weights for a mean of the positions, weighted by attention.
    Attention {
        /// The maps that it sees.
        shape: MapShape,
        /// Mean of each channel, and the inverse of its deviation.
        standard: Vec<(f32, f32)>,
        /// Its weights.
        parameters: Vec<Parameter>,
    },
}

/// Pictures that an attention head sees at a time.
const TOGETHER: usize = 4 * LANES;

impl ReadOut {
    /// Of a classifier just fitted.
    pub fn new(about: About, fitted: Fitted) -> ReadOut {
        let Fitted { weights, bias, lambda, tried } = fitted;
        ReadOut {
            about: About { lambda: Some(lambda), tried, ..about },
            model: Model::Linear { weights, bias },
        }
    }

    /// Of a head that learned by gradients: its standardisation becomes part of its weights where it is linear.
    pub fn of_head(about: About, head: &Head) -> ReadOut {
        let Head { kind, shape, classes, standard, parameters, .. } = head;
        let (of_classes, of_bias) = (&parameters[0], &parameters[1]);
        let places = match kind {
            HeadKind::Attention(_) => {
                let (standard, parameters) = (standard.clone(), parameters.clone());
                return ReadOut { about, model: Model::Attention { shape: *shape, standard, parameters } };
            }
            HeadKind::Mean => 1,
            HeadKind::Full => shape.rows * shape.cols,
        };
        let (padded, channels) = (of_classes.padded(), shape.channels);
        let mut weights = Array2::zeros((*classes, channels * places));
        let mut bias: Vec<f64> = of_bias.values[..*classes].iter().map(|&x| f64::from(x)).collect();
        for class in 0..*classes {
            for (place, channel) in (0..places).flat_map(|p| (0..channels).map(move |c| (p, c))) {
                let (mean, inverse) = standard[channel];
                let weight = of_classes.values[(place * channels + channel) * padded + class] * inverse;
                bias[class] -= f64::from(weight) * f64::from(mean);
                weights[[class, channel * places + place]] = weight;
            }
        }
        let bias = bias.into_iter().map(|x| x as f32).collect();
        ReadOut { about, model: Model::Linear { weights, bias } }
    }

    /// The folder of a run's read-out of this name.
    pub fn folder(run: &Path, name: &str) -> PathBuf {
        run.join("classify").join(name)
    }

    /// Writes it into a folder, in place of an older one, whole or not at all.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, folder: &Path, config: &RunConfig) -> Result<()> {
        let mut scale = Vec::new();
        let tensors = match &self.model {
            Model::Linear { weights, bias } => vec![
                (
                    "readout.weights".to_owned(),
                    weights.shape().to_vec(),
                    weights.as_slice().expect("rows in order"),
                ),
                ("readout.bias".to_owned(), vec![bias.len()], &bias[..]),
            ],
            Model::Attention { standard, parameters, .. } => {
                scale.extend(standard.iter().flat_map(|&(mean, inverse)| [mean, inverse]));
                let named = |p: &'static str| format!("readout.{p}");
                let tensor = |p: &Parameter| (named(p.name), vec![p.inputs, p.padded()]);
                let mut tensors: Vec<(String, Vec<usize>, &[f32])> = Vec::new();
                for parameter in parameters {
                    let (name, shape) = tensor(parameter);
                    tensors.push((name, shape, &parameter.values));
                }
                tensors.push((named("standard"), vec![standard.len(), 2], &scale));
                tensors
            }
        };
        save_tensors(folder, config, &self.about.labels.join(" "), &tensors, &self.about)
    }

    /// Reads it back.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn load(folder: &Path) -> Result<ReadOut> {
        if !folder.is_dir() {
            let problem = "there is no read-out: `striate classify fit` makes one";
            return Err(Error::bad_file(folder, problem));
        }
        let about: About = checkpoint::read_state(folder)?;
        let (_, mut tensors) = load_tensors(folder)?;
        if let Some(hidden) = about.attention() {
            let shape = about.shape.expect("attention is over the positions of maps");
            let mut head = Head::new(
                HeadKind::Attention(hidden),
                shape,
                about.classes.len(),
                vec![(0.0, 1.0); shape.channels],
                0,
            );
            for parameter in &mut head.parameters {
                let (name, size) =
                    (format!("readout.{}", parameter.name), [parameter.inputs, parameter.padded()]);
                parameter.values = take(folder, &mut tensors, &name, &size)?;
            }
            let standard = take(folder, &mut tensors, "readout.standard", &[shape.channels, 2])?;
            let standard = standard.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
            return Ok(ReadOut {
                about,
                model: Model::Attention { shape, standard, parameters: head.parameters },
            });
        }
        let size = [about.classes.len(), about.features];
        let weights = take(folder, &mut tensors, "readout.weights", &size)?;
        let bias = take(folder, &mut tensors, "readout.bias", &size[..1])?;
        let weights = Array2::from_shape_vec(size, weights).expect("shape was checked");
        Ok(ReadOut { about, model: Model::Linear { weights, bias } })
    }

    /// All read-outs of a run that belong to the learned weights of a checkpoint, with their names, in the order of these.
    ///
    /// # Errors
    /// One of them is damaged.
    pub fn all_of(run: &Path, checkpoint: &str) -> Result<Vec<(String, ReadOut)>> {
        let entries = std::fs::read_dir(run.join("classify")).into_iter().flatten().flatten();
        let is_whole = |path: &PathBuf| path.is_dir() && path.join("state.json").is_file();
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_whole).collect();
        folders.retain(|folder| folder.extension().is_none()); // no half-written or replaced ones
        folders.sort();
        let all = folders.iter().map(|folder| Ok((name(folder), ReadOut::load(folder)?)));
        let is_its = |found: &Result<(String, ReadOut)>| {
            found.as_ref().map_or(true, |(_, readout)| {
                readout.about.weights == Weights::Learned && readout.about.checkpoint == checkpoint
            })
        };
        all.filter(is_its).collect()
    }

    /// Probabilities of the classes, `[picture, class]`, from features `[picture, feature]`.
    pub fn probabilities(&self, features: ArrayView2<f32>) -> Vec<f32> {
        let mut numbers = match &self.model {
            Model::Linear { weights, bias } => {
                let mut numbers = features.dot(&weights.t());
                numbers.rows_mut().into_iter().for_each(|mut row| {
                    row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
                });
                numbers.into_raw_vec_and_offset().0
            }
            Model::Attention { .. } => self.attend(features).0,
        };
        let rows = numbers.chunks_exact_mut(self.about.classes.len());
        rows.for_each(|row| probabilities(self.about.method, row));
        numbers
    }

    /// How much each position weighs for each picture, `[picture, position]`, from features `[picture, feature]`; none unless it has attention.
    pub fn attention(&self, features: ArrayView2<f32>) -> Option<Array2<f32>> {
        let Model::Attention { shape, .. } = &self.model else { return None };
        let weights = self.attend(features).1;
        Some(
            Array2::from_shape_vec((features.nrows(), shape.rows * shape.cols), weights)
                .expect("a row for each picture"),
        )
    }

    /// Where attention lies in the picture, from the weights of the positions: each is spread evenly over the pixels that the units of its
    /// position see by filtering and pooling.
    pub fn over_picture(&self, network: &Network, weights: &[f32]) -> HeatMap {
        let Of::Units(groups) = &self.about.view.of else { unreachable!("attention is over units") };
        let (group, MapShape { rows, cols, .. }) = (groups[0], network.input);
        let shapes: Vec<StageShape> =
            network.stages[..=group.stage].iter().map(|stage| stage.shape).collect();
        let mut values = vec![0.0; rows * cols];
        let across = network.shape(group.stage, group.kind).cols;
        for (position, weight) in weights.iter().enumerate() {
            let parts = needed(&shapes, Kind::H, position / across, position % across);
            let Part { rows: down, cols: seen } = &parts[0].input;
            let share = weight / (down.len() * seen.len()) as f32;
            for row in down.clone() {
                values[row * cols..][seen.clone()].iter_mut().for_each(|value| *value += share);
            }
        }
        HeatMap { rows, cols, values }
    }

    /// Numbers of the classes, and weights of the positions, a row for each picture.
    fn attend(&self, features: ArrayView2<f32>) -> (Vec<f32>, Vec<f32>) {
        let Model::Attention { shape, standard, parameters } = &self.model else {
            unreachable!("only attention attends");
        };
        let hidden = self.about.attention().expect("it has attention");
        let classes = self.about.classes.len();
        let mut head = Head::new(HeadKind::Attention(hidden), *shape, classes, standard.clone(), 0);
        head.parameters.clone_from(parameters);
        let (positions, mut numbers, mut weights) = (shape.rows * shape.cols, Vec::new(), Vec::new());
        for some in features.axis_chunks_iter(ndarray::Axis(0), TOGETHER) {
            let lanes = lanes_for(some.nrows());
            let mut maps = vec![0.0; shape.len() * lanes];
            for (lane, row) in some.rows().into_iter().enumerate() {
                for (at, &value) in row.iter().enumerate() {
                    maps[(at % positions * shape.channels + at / positions) * lanes + lane] = value;
                }
            }
            let of_classes = head.forward(&maps, lanes).to_vec();
            let of_positions = head.weights_of_positions();
            for lane in 0..some.nrows() {
                numbers.extend((0..classes).map(|class| of_classes[class * lanes + lane]));
                weights.extend((0..positions).map(|position| of_positions[position * lanes + lane]));
            }
        }
        (numbers, weights)
    }
}
