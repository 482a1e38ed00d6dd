//! What theory says of training, measured on a network and its labels.
//!
//! [`ntk`]: does the network learn like a linear model in its tangent kernel (Jacot et al. 2018)? [`overparam`]: does an extra linear factor
//! speed learning (Arora et al. 2018)? Both tune as [`classify::tune`](crate::classify::tune) does.

pub mod factored;
pub mod ntk;
pub mod overparam;
pub mod regression;
pub mod tangent;
