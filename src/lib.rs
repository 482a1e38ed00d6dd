//! `striate` teaches itself to see from unlabelled video, and shows what it learned.
//!
//! It is the system of Le et al., "Building high-level features using large scale unsupervised learning" (ICML
//! 2012). Data flows one way, and so do the modules; each imports only from those before it:
//!
//! ```text
//! error, rng, geometry, config     what everything shares
//! video    files -> decoded frames at chosen instants, and drawn videos with ground truth
//! frames   frames -> tar shards on disk, and any pictures back from disk
//! dataset  pictures -> shuffled minibatches of the network's input size
//! kernels  the arithmetic of one layer, for each instruction set
//! network  stages in order: forward, objective, gradients, whitening, checkpoints
//! training replicas on threads update one set of weights, none waiting for another
//! analysis what does each unit prefer?
//! report   one HTML file that shows it
//! ```
#![warn(missing_docs)]

pub mod config;
pub mod error;
pub mod geometry;
pub mod rng;
pub mod video;

pub use config::RunConfig;
pub use error::{Error, Result};
