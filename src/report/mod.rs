//! Results as pictures, and as one HTML file.

pub mod figure;
pub mod gallery;
mod page;
mod units;

pub use page::write_report;
