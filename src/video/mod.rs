//! From video files to decoded frames, and from drawn scenes to video files.

pub mod encode;
pub mod synth;
