//! A read-out: a classifier, and which network it reads what of. It is kept in a folder like a checkpoint's.

use std::path::{Path, PathBuf};

use ndarray::{Array2, ArrayView2};
use serde::{Deserialize, Serialize};

use super::linear::{Fitted, Method, Tried, probabilities};
use super::view::View;
use crate::config::RunConfig;
use crate::error::{Error, Result};
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
    /// The λ taken.
    pub lambda: f64,
    /// All λ tried.
    pub tried: Vec<Tried>,
    /// Seed of folds, and of which labels were used.
    pub seed: u64,
    /// Share of the labels that was used.
    pub share: f64,
}

/// A read-out.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadOut {
    /// What it is.
    pub about: About,
    /// `[class, feature]`.
    pub weights: Array2<f32>,
    /// `[class]`.
    pub bias: Vec<f32>,
}

impl ReadOut {
    /// Of a classifier just fitted.
    pub fn new(about: About, fitted: Fitted) -> ReadOut {
        let Fitted { weights, bias, lambda, tried } = fitted;
        ReadOut { about: About { lambda, tried, ..about }, weights, bias }
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
        let weights = self.weights.as_slice().expect("rows one after the other");
        let tensors = [
            ("readout.weights", self.weights.shape().to_vec(), weights),
            ("readout.bias", vec![self.bias.len()], &self.bias[..]),
        ];
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
        let size = [about.classes.len(), about.features];
        let weights = take(folder, &mut tensors, "readout.weights", &size)?;
        let bias = take(folder, &mut tensors, "readout.bias", &size[..1])?;
        let weights = Array2::from_shape_vec(size, weights).expect("shape was checked");
        Ok(ReadOut { about, weights, bias })
    }

    /// Probabilities of the classes, `[picture, class]`, from features `[picture, feature]`.
    pub fn probabilities(&self, features: ArrayView2<f32>) -> Vec<f32> {
        let mut numbers = features.dot(&self.weights.t());
        numbers.rows_mut().into_iter().for_each(|mut row| {
            row.iter_mut().zip(&self.bias).for_each(|(x, bias)| *x += bias);
            probabilities(self.about.method, row.as_slice_mut().expect("a row"));
        });
        numbers.into_raw_vec_and_offset().0
    }
}
