//! Results as pictures, and as one HTML file.

pub mod figure;
pub mod gallery;

use std::path::Path;

use crate::error::Result;

/// x
pub fn write_report(_run: &Path, _out: &Path) -> Result<(u64, usize)> {
    todo!()
}
