//! Colours of a scene. Clutter draws from the same skins, furs, hair and cloth as the figures do.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::raster::{Rgb, mix, scale};
use crate::rng::ChaCha8Rng;

/// Skin, from light to dark; screen values, as are all tables here.
const SKINS: [u32; 8] = [0xf1c9a5, 0xe8b48c, 0xdba078, 0xc68a62, 0xa86f48, 0x8a5638, 0x6a4028, 0x4a2c1c];
const HAIR: [u32; 8] = [0x16120f, 0x2a1c14, 0x43291a, 0x6b4423, 0x9a6a36, 0xc9a063, 0x8c3b1e, 0xb8b4ae];
const FURS: [u32; 8] = [0x1b1a1a, 0x4a4644, 0x86807a, 0xc4bcb2, 0xd98f4e, 0xa8703e, 0xe6d6bf, 0x6a5440];
const CLOTH: [u32; 10] =
    [0xb03030, 0x2f4f8f, 0x2f6f4f, 0xd8d4cc, 0x222428, 0xd0a030, 0x7a4f8a, 0x4f8fa8, 0x8a8478, 0xd0708a];
/// Ground colours of kinds of places: foliage, earth, rooms, streets, water and sky, dusk.
const PLACES: [[u32; 6]; 6] = [
    [0x3c5a28, 0x6f8f3a, 0x26381c, 0xa8b06a, 0x5a4a30, 0x8fae6a],
    [0x8a6a48, 0xc8a878, 0x5a4028, 0xa89078, 0x786858, 0xe0d0b0],
    [0xb8a890, 0xe8e0d0, 0x6a4a3a, 0x9a8a9a, 0x403838, 0xc89868],
    [0x888c90, 0xb8b8b4, 0x484c52, 0xa86850, 0x686460, 0xd8d8d8],
    [0x6a98c0, 0xa8c8e0, 0x385878, 0xe0e8f0, 0x4a7888, 0x90a8a0],
    [0x48386a, 0xa05858, 0x283048, 0xd89868, 0x584858, 0x80889a],
];

/// Light reflected by a surface that looks like `0xrrggbb` on screen.
pub(super) fn hex(code: u32) -> Rgb {
    [code >> 16, code >> 8, code].map(|v| ((v & 255) as f32 / 255.0).powi(2))
}

fn vary(rng: &mut ChaCha8Rng, colour: Rgb, amount: f32) -> Rgb {
    let brightness = 2.0f32.powf(rng.random_range(-amount..amount));
    colour.map(|v| v * brightness * rng.random_range(1.0 - 0.3 * amount..1.0 + 0.3 * amount))
}

fn one_of(rng: &mut ChaCha8Rng, table: &[u32], amount: f32) -> Rgb {
    let code = *table.choose(rng).expect("tables are not empty");
    vary(rng, hex(code), amount)
}

pub(super) fn skin(rng: &mut ChaCha8Rng) -> Rgb {
    one_of(rng, &SKINS, 0.25)
}

pub(super) fn hair(rng: &mut ChaCha8Rng) -> Rgb {
    one_of(rng, &HAIR, 0.4)
}

pub(super) fn fur(rng: &mut ChaCha8Rng) -> Rgb {
    one_of(rng, &FURS, 0.3)
}

pub(super) fn cloth(rng: &mut ChaCha8Rng) -> Rgb {
    one_of(rng, &CLOTH, 0.6)
}

/// The colours that one scene's clutter is made of.
#[derive(Debug, Clone)]
pub(super) struct Palette {
    place: [Rgb; 6],
    /// How far colours stray from the table.
    spread: f32,
}

impl Palette {
    pub fn new(rng: &mut ChaCha8Rng) -> Palette {
        let main = PLACES.choose(rng).expect("tables are not empty");
        let side = PLACES.choose(rng).expect("tables are not empty");
        let place = std::array::from_fn(|i| if i < 4 { hex(main[i]) } else { hex(side[i]) });
        Palette { place, spread: rng.random_range(0.3..1.0) }
    }

    /// A colour for one leaf.
    pub fn colour(&self, rng: &mut ChaCha8Rng) -> Rgb {
        match rng.random_range(0..20) {
            0..2 => skin(rng),
            2 => hair(rng),
            3 => fur(rng),
            4..6 => cloth(rng),
            6 => scale(self.ground(rng), 0.15),
            _ => self.ground(rng),
        }
    }

    /// A colour of the place.
    pub fn ground(&self, rng: &mut ChaCha8Rng) -> Rgb {
        let a = *self.place.choose(rng).expect("six colours");
        let b = *self.place.choose(rng).expect("six colours");
        let mixed = mix(a, b, rng.random_range(0.0..0.4));
        vary(rng, mixed, self.spread)
    }
}
