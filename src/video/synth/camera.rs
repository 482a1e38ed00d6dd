//! How the view moves during a scene, and where that puts things on screen.

use rand::Rng;

use crate::rng::ChaCha8Rng;

/// A camera that pans, zooms and rolls smoothly.
#[derive(Debug, Clone)]
pub(super) struct Camera {
    seconds: f32,
    /// Frame heights per second, for what is at nearness 1.
    pan: [f32; 2],
    sway: [f32; 2],
    sway_rate: f32,
    /// Relative growth per second.
    zoom: f32,
    roll: f32,
    roll_speed: f32,
}

/// Where and how large a point's surroundings appear, in pixels and radians.
#[derive(Debug, Clone, Copy)]
pub(super) struct View {
    pub x: f32,
    pub y: f32,
    /// Pixels per frame height.
    pub scale: f32,
    pub angle: f32,
}

impl Camera {
    /// A camera for a scene of `seconds`.
    pub fn new(rng: &mut ChaCha8Rng, seconds: f32) -> Camera {
        let still = rng.random_bool(0.25);
        let amount = if still { 0.1 } else { 1.0 };
        let mut up_to = |most: f32| rng.random_range(-most..most) * amount;
        Camera {
            seconds,
            pan: [up_to(0.35), up_to(0.15)],
            sway: [up_to(0.02), up_to(0.02)],
            zoom: up_to(0.12),
            roll: up_to(0.15),
            roll_speed: up_to(0.08),
            sway_rate: rng.random_range(1.0..4.0),
        }
    }

    /// Projects a point at `nearness` (0 at infinity, 1 in the plane of the figures) as seen at `t`.
    pub fn project(&self, at: [f32; 2], nearness: f32, t: f32, width: usize, height: usize) -> View {
        // Time counts from the middle of the scene, so that what it is about is in the middle then.
        let t = t - self.seconds / 2.0;
        let phase = (self.sway_rate * t).sin_cos();
        let x = at[0] - (self.pan[0] * t + self.sway[0] * phase.0) * nearness;
        let y = at[1] - (self.pan[1] * t + self.sway[1] * phase.1) * nearness;
        let zoom = (self.zoom * t * nearness).exp();
        let angle = self.roll + self.roll_speed * t;
        let (sin, cos) = angle.sin_cos();
        let scale = zoom * height as f32;
        View {
            x: width as f32 / 2.0 + (x * cos - y * sin) * scale,
            y: height as f32 / 2.0 + (x * sin + y * cos) * scale,
            scale,
            angle,
        }
    }

    /// Half-width and half-height of what is ever in view at `nearness`, for frames `aspect` times as wide as high.
    pub fn reach(&self, nearness: f32, aspect: f32) -> [f32; 2] {
        let half = self.seconds / 2.0;
        let zoom = (self.zoom.abs() * half * nearness).exp();
        let (sin, cos) = (self.roll.abs() + self.roll_speed.abs() * half).min(0.7).sin_cos();
        let corner = [(aspect * cos + sin) / 2.0 * zoom, (cos + aspect * sin) / 2.0 * zoom];
        std::array::from_fn(|i| corner[i] + (self.pan[i].abs() * half + self.sway[i].abs()) * nearness + 0.1)
    }
}
