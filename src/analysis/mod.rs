//! What does each unit prefer? Optimised pictures, and the frames that drive it most.

pub mod stimulus;
pub mod top;
