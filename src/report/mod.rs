//! Results as pictures, and as one HTML file.

pub mod figure;
pub mod gallery;
pub mod invariance;
pub mod map;
pub mod neighbours;
mod page;
pub mod tuning;
mod units;

pub use page::write_report;
