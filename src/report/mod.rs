//! Results as pictures, and as one HTML file.

pub mod detectors;
pub mod figure;
pub mod gallery;
pub mod invariance;
mod page;
pub mod tuning;
mod units;

pub use page::write_report;
