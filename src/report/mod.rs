//! Results as pictures, and as one HTML file.

pub mod figure;
pub mod gallery;
