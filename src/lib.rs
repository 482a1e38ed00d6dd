//! `striate` teaches itself to see from unlabelled video, and shows what it learned.
//!
//! It is the system of Le et al., "Building high-level features using large scale unsupervised learning" (ICML
//! 2012). Data flows one way, and so do the modules; each imports only from those before it:
//!
//! ```text
//! error, files, rng, geometry, config     what everything shares
//! video    files -> decoded frames at chosen instants, and drawn videos with ground truth
//! frames   frames -> tar shards on disk, and any pictures back from disk
//! sampling the two together, in worker processes, in a fixed order
//! dataset  pictures -> shuffled minibatches of the network's input size
//! kernels  the arithmetic of one layer, for each instruction set
//! network  stages in order: forward, objective, gradients, whitening, checkpoints
//! picture  tiles, grids of tiles, filters
//! training replicas on threads update one set of weights, none waiting for another
//! analysis what does each unit prefer, and what does it detect?
//! classify what are the features worth where there are labels?
//! probe    does training go as theory says?
//! bench    how fast all this is on this machine
//! scale    larger networks within a budget of compute and memory
//! report   one HTML file that shows it
//! serve    the same as a web app, and what the network makes of pictures that are dropped on it
//! ```
//!
//! The top stage's values for some pictures, by a network with random weights:
//!
//! ```no_run
//! # fn main() -> striate::Result<()> {
//! # let pictures = ndarray::Array4::<f32>::zeros((16, 1, 32, 32));
//! let config = striate::RunConfig::load("configs/small.toml".as_ref(), &[])?;
//! let network = striate::network::Network::new(&config, 0)?;
//! let mut work = network.workspace(16);
//! work.load(pictures.view()); // [picture, channel, row, column]
//! network.forward(&mut work, 2);
//! let top = work.values(&network, 2, striate::geometry::Kind::Y);
//! # Ok(())
//! # }
//! ```
#![warn(missing_docs)]

pub mod analysis;
pub mod bench;
pub mod classify;
pub mod config;
pub mod dataset;
pub mod error;
pub mod files;
pub mod frames;
pub mod geometry;
pub mod kernels;
pub mod network;
pub mod picture;
pub mod probe;
pub mod report;
pub mod rng;
pub mod sampling;
pub mod scale;
pub mod serve;
pub mod training;
pub mod verify;
pub mod video;

pub use config::RunConfig;
pub use error::{Error, Result};
