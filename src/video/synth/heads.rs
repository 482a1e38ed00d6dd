//! Heads alone, turned to any side: for what units do with rotation out of the picture plane.

use image::RgbImage;
use rand::Rng;

use super::camera::View;
use super::palette::Palette;
use super::people::Person;
use super::raster::{Canvas, Light, mix, noise, scale, tint, unit};
use super::solid;
use crate::rng;

/// Share of the picture's height that a head takes.
const SHARE: f32 = 0.62;

/// Head and shoulders of person `person` of `seed`, `size` by `size` pixels, the head turned by `yaw_deg` about its vertical axis (0
/// faces the viewer, 90 looks to the viewer's right). Looks, light and ground are the same for every turn.
///
/// # Panics
/// If the picture has no pixels.
pub fn head(seed: u64, person: u64, yaw_deg: f32, size: u32) -> RgbImage {
    assert!(size > 0, "a picture of {size} pixels is asked");
    let mut rng = rng::stream(seed, "synth heads", person);
    let who = Person::new(&mut rng);
    let palette = Palette::new(&mut rng);
    let ground = [palette.ground(&mut rng), palette.ground(&mut rng)];
    let offset: f32 = rng.random_range(0.0..200.0);
    let light = Light {
        towards: unit([rng.random_range(-0.8..0.8), rng.random_range(-0.9..0.0), 1.0]),
        ambient: rng.random_range(0.3..0.6),
        colour: scale([1.0; 3], rng.random_range(0.8..1.2)),
    };
    let side = size as usize;
    let mut canvas = Canvas::new(side, side);
    for (at, pixel) in canvas.pixels.iter_mut().enumerate() {
        let (x, y) = ((at % side) as f32 / size as f32, (at / side) as f32 / size as f32);
        let mottle = 0.5 + 0.5 * noise(8.0 * x + offset, 8.0 * y + offset);
        *pixel = tint(mix(ground[0], ground[1], mottle.clamp(0.0, 1.0)), light.colour);
    }
    let middle = size as f32 / 2.0;
    // A head is two units high.
    let view = View { x: middle, y: middle, scale: 0.5 * SHARE * size as f32, angle: 0.0 };
    let parts = who.bust(0.0, yaw_deg.to_radians(), 0.0);
    solid::draw(&mut canvas, &parts, &solid::rotation(0.0, 0.0, 0.0), &view, &light, &[]);
    canvas.to_image()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(a: &RgbImage, b: &RgbImage) -> f64 {
        let sum: u64 = a.iter().zip(b.iter()).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        sum as f64 / a.len() as f64
    }

    #[test]
    fn a_head_turns_little_by_little_and_the_rest_stays() {
        let at = |yaw| head(1, 2, yaw, 64);
        assert_eq!(at(30.0), at(30.0));
        let steps = [10.0, 30.0, 90.0].map(|yaw| difference(&at(0.0), &at(yaw)));
        assert!(0.0 < steps[0] && steps[0] < steps[1] && steps[1] < steps[2], "{steps:?}");
        // The ground beside the head.
        assert!((0..8).all(|x| at(-90.0).get_pixel(x, x) == at(90.0).get_pixel(x, x)));
    }

    #[test]
    fn turned_the_other_way_it_is_not_the_same_and_people_differ() {
        assert!(difference(&head(1, 2, -60.0, 64), &head(1, 2, 60.0, 64)) > 1.0);
        assert!(difference(&head(1, 2, 0.0, 64), &head(1, 3, 0.0, 64)) > 1.0);
        assert!(difference(&head(1, 2, 0.0, 64), &head(2, 2, 0.0, 64)) > 1.0);
    }
}
