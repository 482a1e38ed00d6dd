//! Checks this build on this CPU against golden files: an independent float64 implementation's numbers.
//!
//! A golden file is a safetensors file of f64 tensors with its network's settings as JSON in the metadata (`spec`):
//! activations, objectives, gradients in every mode, weights after three steps, and a preferred stimulus.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ndarray::{ArrayD, ArrayViewD, Axis, Ix3, Ix4, Ix6, IxDyn};
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::config::{self, Input, LcnBorder, Objective, Preprocess, Reconstruction, RunConfig, Training};
use crate::error::{Error, Result};
use crate::geometry::Kind;
use crate::kernels::Cpu;
use crate::network::plain::PlainNetwork;
use crate::network::{At, Network, Unit, WeightUpdate, Weights};

/// The golden files that ship with the project: name and content.
pub const SHIPPED: [(&str, &[u8]); 3] = [
    ("one_stage", include_bytes!("../tests/golden/one_stage.safetensors")),
    ("two_stage", include_bytes!("../tests/golden/two_stage.safetensors")),
    ("three_stage", include_bytes!("../tests/golden/three_stage.safetensors")),
];

/// Error allowed, relative to the largest entry of a tensor, in f32.
const ACTIVATIONS: f64 = 1e-5;
const GRADIENTS: f64 = 1e-4;
const STIMULI: f64 = 1e-3;

/// One tensor compared.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    /// File it is from.
    pub file: String,
    /// Instruction set that computed it.
    pub cpu: &'static str,
    /// Name of the tensor.
    pub tensor: String,
    /// Largest difference over the largest entry.
    pub error: f64,
    /// Largest error allowed.
    pub tolerance: f64,
}

impl Check {
    /// True if the error is a number within the tolerance.
    pub fn passes(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// A golden file's settings, in its own names.
#[derive(Deserialize)]
struct Spec {
    config: GoldenConfig,
    batch: usize,
    lr: f32,
    unit: [usize; 3],
    preferred: GoldenAscent,
}

#[derive(Deserialize)]
struct GoldenAscent {
    step: f64,
    iters: usize,
}

#[derive(Deserialize)]
struct GoldenConfig {
    channels: usize,
    height: usize,
    width: usize,
    stages: Vec<GoldenStage>,
}

#[derive(Deserialize)]
struct GoldenStage {
    k: usize,
    s1: usize,
    maps: usize,
    p: usize,
    s2: usize,
    l: usize,
    lam: f64,
    eps: f64,
    c: f64,
    recon_weight: String,
    lcn_border: String,
}

/// Compares everything in a golden file, computed with `cpu`. `name` is what the checks call it.
///
/// # Errors
/// The file is no golden file: not safetensors, without `spec`, or with a tensor missing or of another type.
pub fn check_file(path: &Path, bytes: &[u8], cpu: Cpu) -> Result<Vec<Check>> {
    Golden::open(path, bytes)?.check(cpu)
}

struct Golden {
    path: PathBuf,
    tensors: HashMap<String, ArrayD<f64>>,
    spec: Spec,
    config: RunConfig,
    checks: Vec<Check>,
}

/// Plain gradient descent.
struct Descent(f32);

impl WeightUpdate for Descent {
    fn update(&self, _: At, _: usize, weights: &mut [f32], _: &mut [f32], gradient: &mut [f32]) {
        weights.iter_mut().zip(gradient).for_each(|(w, g)| *w -= self.0 * *g);
    }
}

/// Leaves the weights alone and the gradient where the optimiser's sums are.
struct KeepGradient;

impl WeightUpdate for KeepGradient {
    fn update(&self, _: At, _: usize, _: &mut [f32], sums: &mut [f32], gradient: &mut [f32]) {
        sums.copy_from_slice(gradient);
    }
}

impl Golden {
    fn open(path: &Path, bytes: &[u8]) -> Result<Golden> {
        let bad = |problem: String| Error::bad_file(path, format!("not a golden file: {problem}"));
        let file = SafeTensors::deserialize(bytes).map_err(|e| bad(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| bad(e.to_string()))?;
        let spec = header.metadata().as_ref().and_then(|m| m.get("spec"));
        let spec = spec.ok_or_else(|| bad("no `spec` in its metadata".into()))?;
        let spec: Spec = serde_json::from_str(spec).map_err(|e| bad(format!("its `spec` is wrong: {e}")))?;
        let mut tensors = HashMap::new();
        for (name, view) in file.tensors() {
            if view.dtype() != Dtype::F64 {
                return Err(bad(format!("tensor `{name}` is {:?}, expected F64", view.dtype())));
            }
            let values =
                view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("8 bytes")));
            let tensor = ArrayD::from_shape_vec(IxDyn(view.shape()), values.collect());
            tensors.insert(name, tensor.expect("safetensors checked the size"));
        }
        let config = spec.config.to_run_config().map_err(|e| bad(e.to_string()))?;
        Ok(Golden { path: path.into(), tensors, spec, config, checks: Vec::new() })
    }

    fn tensor(&self, name: &str) -> Result<ArrayViewD<'_, f64>> {
        let missing =
            || Error::bad_file(&self.path, format!("not a golden file: tensor `{name}` is missing"));
        self.tensors.get(name).map(|tensor| tensor.view()).ok_or_else(missing)
    }

    fn compare(&mut self, cpu: Cpu, name: String, got: ArrayViewD<f64>, tolerance: f64) -> Result<()> {
        let want = self.tensor(&name)?;
        if want.shape() != got.shape() {
            let problem =
                format!("tensor `{name}` is {:?}, its settings make it {:?}", want.shape(), got.shape());
            return Err(Error::bad_file(&self.path, problem));
        }
        let error = relative_error(got, want);
        self.record(cpu, name, error, tolerance);
        Ok(())
    }

    fn record(&mut self, cpu: Cpu, tensor: String, error: f64, tolerance: f64) {
        let file = self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        self.checks.push(Check { file, cpu: cpu.name(), tensor, error, tolerance });
    }

    /// The network with the file's weights.
    fn network(&self, cpu: Cpu) -> Result<Network> {
        let network = Network::zeros(&self.config, true)?.with_cpu(cpu);
        for (number, stage) in (1..).zip(&network.stages) {
            for (name, which) in [("W1", Weights::Encoder), ("W2", Weights::Decoder)] {
                let tensor = self.tensor(&format!("stage{number}.{name}"))?;
                let shape = stage.weights(which);
                if tensor.shape() != shape.shape() {
                    let (got, want) = (tensor.shape(), shape.shape());
                    let problem = format!("stage{number}.{name} is {got:?}, its settings make it {want:?}");
                    return Err(Error::bad_file(&self.path, problem));
                }
                for (row, weights) in tensor.outer_iter().enumerate() {
                    stage.set_weights(which, row, weights.iter().map(|&w| w as f32));
                }
            }
        }
        Ok(network)
    }

    fn check(mut self, cpu: Cpu) -> Result<Vec<Check>> {
        let x = self.tensor("x")?.mapv(|v| v as f32);
        let x =
            x.into_dimensionality::<Ix4>().map_err(|e| Error::bad_file(&self.path, format!("`x`: {e}")))?;
        let size =
            (self.spec.batch, self.config.input.channels, self.config.input.height, self.config.input.width);
        if x.dim() != size {
            return Err(Error::bad_file(
                &self.path,
                format!("`x` is {:?}, its settings make it {size:?}", x.dim()),
            ));
        }
        let network = self.network(cpu)?;
        let mut work = network.workspace(x.len_of(Axis(0)));
        work.load(x.view());
        let top = network.stages.len() - 1;

        let losses = network.losses(&mut work, 0..top + 1);
        for (index, loss) in losses.iter().enumerate() {
            let number = index + 1;
            for (name, kind) in [("a", Kind::A), ("h", Kind::H), ("y", Kind::Y)] {
                let got = work.values(&network, index, kind).mapv(f64::from).into_dyn();
                self.compare(cpu, format!("stage{number}.{name}"), got.view(), ACTIVATIONS)?;
            }
            let residual = work.unpack(&work.stages[index].residual, network.stages[index].shape.input);
            let input = match index {
                0 => x.clone(),
                _ => work.values(&network, index - 1, Kind::Y),
            };
            let r = (&residual + &input).mapv(f64::from).into_dyn();
            self.compare(cpu, format!("stage{number}.r"), r.view(), ACTIVATIONS)?;
            let objective = ndarray::arr1(&[loss.reconstruction, loss.sparsity, loss.total()]).into_dyn();
            self.compare(cpu, format!("stage{number}.objective"), objective.view(), ACTIVATIONS)?;
        }

        for mode in Objective::ALL {
            network.learn(&mut work, 0..top + 1, mode, &KeepGradient);
            let sums = [("W1", Weights::EncoderSums), ("W2", Weights::DecoderSums)];
            self.compare_weights(cpu, &network, &format!("grad.{}", mode.name()), sums)?;
            self.check_descent(cpu, mode, x.view())?;
        }

        let [map, row, col] = self.spec.unit;
        let unit = Unit { map, row, col };
        if !network.units(top, Kind::Y).contains(&unit) {
            return Err(Error::bad_file(
                &self.path,
                format!("unit {:?} is outside the top stage", self.spec.unit),
            ));
        }
        for (name, kind) in [("y", Kind::Y), ("h", Kind::H)] {
            network.forward(&mut work, top);
            let values = work.unit_values(&network, top, kind, unit).iter().map(|&v| f64::from(v));
            let values = ndarray::Array1::from_iter(values).into_dyn();
            self.compare(cpu, format!("unit.{name}.value"), values.view(), ACTIVATIONS)?;
            let units = vec![unit; work.pictures];
            network.input_gradient(&mut work, top, kind, &units);
            let gradient = work.unpack(&work.input_gradient, network.input).mapv(f64::from).into_dyn();
            self.compare(cpu, format!("unit.{name}.grad_x"), gradient.view(), GRADIENTS)?;

            self.check_climb(cpu, &network, name, kind, unit)?;
        }
        self.refuse_unchecked()?;
        Ok(self.checks)
    }

    /// The preferred stimulus. Its fixed steps cross ridges where f32 and f64 soon part for good, so the path is climbed
    /// in f64, and at every point of it the fast code's gradient must agree.
    fn check_climb(&mut self, cpu: Cpu, network: &Network, name: &str, kind: Kind, unit: Unit) -> Result<()> {
        let GoldenAscent { step, iters } = self.spec.preferred;
        let weights = |name: String| -> Result<_> {
            let weights = self.tensor(&name)?.to_owned().into_dimensionality::<Ix6>();
            weights.map_err(|e| Error::bad_file(&self.path, format!("`{name}`: {e}")))
        };
        let stages = 1..=network.stages.len();
        let pairs = stages.map(|s| Ok((weights(format!("stage{s}.W1"))?, weights(format!("stage{s}.W2"))?)));
        let plain = PlainNetwork::new(&self.config, pairs.collect::<Result<_>>()?);
        let start = self.tensor("x")?.index_axis(Axis(0), 0).to_owned();
        let start = start.into_dimensionality::<Ix3>().expect("`x` has four dimensions");
        let (path, value) = plain.climb(start.view(), kind, unit, step, iters);
        let end = path.last().expect("it ends somewhere").view().insert_axis(Axis(0)).into_dyn();
        self.compare(cpu, format!("preferred.{name}.x"), end, STIMULI)?;
        self.compare(
            cpu,
            format!("preferred.{name}.value"),
            ndarray::arr1(&[value]).into_dyn().view(),
            STIMULI,
        )?;

        let points = path.iter().map(|x| x.mapv(|x| x as f32)).collect::<Vec<_>>();
        let views = points.iter().map(|x| x.view()).collect::<Vec<_>>();
        let points = ndarray::stack(Axis(0), &views).expect("points are of one shape");
        let (mut work, top) = (network.workspace(points.len_of(Axis(0))), network.stages.len() - 1);
        work.load(points.view());
        network.forward(&mut work, top);
        let units = vec![unit; work.pictures];
        network.input_gradient(&mut work, top, kind, &units);
        let got = work.unpack(&work.input_gradient, network.input).mapv(f64::from);
        let want = points.outer_iter().map(|x| plain.unit_gradient(x.mapv(f64::from).view(), kind, unit).1);
        let error = got
            .outer_iter()
            .zip(want)
            .map(|(got, want)| relative_error(got.into_dyn(), want.view().into_dyn()));
        self.record(cpu, format!("preferred.{name}.path (gradients)"), worst(error), STIMULI);
        Ok(())
    }

    /// Three steps of plain gradient descent on `x`, all stages together.
    fn check_descent(&mut self, cpu: Cpu, mode: Objective, x: ndarray::ArrayView4<f32>) -> Result<()> {
        let network = self.network(cpu)?;
        let (stages, steps) = (network.stages.len(), 3);
        let mut work = network.workspace(x.len_of(Axis(0)));
        work.load(x);
        let mut objectives = ndarray::Array2::zeros((steps + 1, stages));
        for step in 0..=steps {
            for (stage, loss) in network.losses(&mut work, 0..stages).iter().enumerate() {
                objectives[(step, stage)] = loss.total();
            }
            if step < steps {
                network.learn(&mut work, 0..stages, mode, &Descent(self.spec.lr));
            }
        }
        let name = format!("sgd3.{}", mode.name());
        self.compare(cpu, format!("{name}.objective"), objectives.into_dyn().view(), ACTIVATIONS)?;
        self.compare_weights(cpu, &network, &name, [("W1", Weights::Encoder), ("W2", Weights::Decoder)])
    }

    fn compare_weights(
        &mut self,
        cpu: Cpu,
        network: &Network,
        prefix: &str,
        arrays: [(&str, Weights); 2],
    ) -> Result<()> {
        for (number, stage) in (1..).zip(&network.stages) {
            for (name, which) in arrays {
                let got = stage.weights(which).mapv(f64::from).into_dyn();
                self.compare(cpu, format!("{prefix}.stage{number}.{name}"), got.view(), GRADIENTS)?;
            }
        }
        Ok(())
    }

    /// A tensor that nothing was compared with would pass unseen.
    fn refuse_unchecked(&self) -> Result<()> {
        let is_input = |name: &str| name == "x" || (name.starts_with("stage") && name.contains(".W"));
        let checked = |name: &String| self.checks.iter().any(|check| check.tensor == *name);
        let mut unknown: Vec<_> =
            self.tensors.keys().filter(|name| !is_input(name) && !checked(name)).cloned().collect();
        unknown.sort();
        match unknown.is_empty() {
            true => Ok(()),
            false => Err(Error::bad_file(&self.path, format!("unknown tensors: {}", unknown.join(", ")))),
        }
    }
}

/// The largest difference, relative to the largest entry wanted.
fn relative_error(got: ArrayViewD<f64>, want: ArrayViewD<f64>) -> f64 {
    let largest = want.iter().fold(0f64, |max, x| max.max(x.abs()));
    let difference = worst(got.iter().zip(want).map(|(g, w)| (g - w).abs()));
    if difference == 0.0 { 0.0 } else { difference / largest }
}

/// The largest of some errors; `f64::max` would drop a NaN, which must count as the worst.
fn worst(errors: impl Iterator<Item = f64>) -> f64 {
    errors.fold(0.0, |max, e| if e.is_nan() || e > max { e } else { max })
}

impl GoldenConfig {
    fn to_run_config(&self) -> Result<RunConfig> {
        let unknown = |key: &str, got: &str, want: &str| Error::Setting {
            key: key.into(),
            got: format!("\"{got}\""),
            want: want.into(),
        };
        let stages = self.stages.iter().map(|s| {
            Ok(config::Stage {
                tied: false,
                maps: s.maps,
                field: s.k,
                stride: s.s1,
                pool: s.p,
                pool_stride: s.s2,
                lcn: s.l,
                sparsity_weight: s.lam,
                epsilon: s.eps,
                lcn_floor: s.c,
                reconstruction: match s.recon_weight.as_str() {
                    "none" => Reconstruction::Sum,
                    "coverage" => Reconstruction::Coverage,
                    other => return Err(unknown("recon_weight", other, "\"none\" or \"coverage\"")),
                },
                lcn_border: match s.lcn_border.as_str() {
                    "renorm" => LcnBorder::Renorm,
                    "zero" => LcnBorder::Zero,
                    other => return Err(unknown("lcn_border", other, "\"renorm\" or \"zero\"")),
                },
            })
        });
        let stages = stages.collect::<Result<Vec<_>>>()?;
        let input = Input {
            channels: self.channels,
            height: self.height,
            width: self.width,
            preprocess: Preprocess::None,
            ..Input::default()
        };
        let training = Training { steps: vec![1; stages.len()], ..Training::default() };
        // Any number of channels is right here; a run's pictures are grey or RGB.
        RunConfig {
            input: Input { channels: 1, ..input.clone() },
            stages: stages.clone(),
            training: training.clone(),
        }
        .checked()
        .map(|_| RunConfig { input, stages, training })
    }
}
