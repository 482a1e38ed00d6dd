//! Results as pictures, and as one HTML file.

pub mod classes;
pub mod compare;
mod data;
pub mod detectors;
pub mod explanation;
pub mod figure;
pub mod gallery;
pub mod invariance;
pub mod map;
pub mod neighbours;
mod page;
pub mod probes;
pub mod tuning;

pub use data::{Findings, Pictures};
pub use page::{Report, write_report};
