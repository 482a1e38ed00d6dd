//! What are the features worth where there are labels? Read-outs that learn classes from what units say of pictures.
//!
//! The network learns without labels; here it stays as it is, and linear classifiers read its units (the paper's ImageNet experiment).
//! Data goes from [`labels`], pictures and their classes, through a [`View`] of the network, by [`linear`] into a [`ReadOut`], and
//! [`scores`] say how good that is.

pub mod head;
pub mod labels;
pub mod linear;
pub mod readout;
pub mod scores;
pub mod tune;
pub mod view;

pub use labels::{LabelTable, Labelled, Source};
pub use readout::{ReadOut, Weights};
pub use scores::Scores;
pub use view::{Of, View};
