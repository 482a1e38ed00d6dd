//! What does each unit prefer? Optimised pictures, and the frames that drive it most.

pub mod detector;
pub mod evaluate;
pub mod responses;
pub mod stimulus;
pub mod top;
