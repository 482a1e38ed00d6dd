//! What is drawn anew each time that a picture is learned from: where the network's window lies in it, and whether it is mirrored.

use rand::Rng;

use crate::config::Input;
use crate::geometry::MapShape;
use crate::rng;

/// What part of a picture is seen, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Window {
    /// Rows above it.
    pub top: usize,
    /// Columns on its left.
    pub left: usize,
    /// Whether it is mirrored left to right.
    pub flip: bool,
}

impl Window {
    /// The one in the middle of a picture that is `margin` pixels larger than the window in height and width.
    pub fn middle(margin: usize) -> Window {
        Window { top: margin / 2, left: margin / 2, flip: false }
    }

    /// Copies it from a picture of size `kept` to one of size `shape`; both `[channel, row, column]`.
    pub(crate) fn cut(self, pixels: &[u8], kept: MapShape, out: &mut [u8], shape: MapShape) {
        assert!(pixels.len() == kept.len() && out.len() == shape.len(), "pictures of other sizes");
        assert!(kept.rows >= shape.rows + self.top && kept.cols >= shape.cols + self.left, "a window inside");
        for (at, row) in out.chunks_exact_mut(shape.cols).enumerate() {
            let (channel, y) = (at / shape.rows, at % shape.rows);
            let from = (channel * kept.rows + self.top + y) * kept.cols + self.left;
            row.copy_from_slice(&pixels[from..][..shape.cols]);
            if self.flip {
                row.reverse();
            }
        }
    }
}

/// Draws windows. Those of minibatch `n` depend on the seed and `n` only: they are the same whoever asks, and whenever.
#[derive(Debug, Clone, Copy)]
pub struct Augment {
    seed: u64,
    margin: usize,
    flip: bool,
}

impl Augment {
    /// As the settings ask for; `None` where every picture is seen whole and as it is.
    pub fn new(input: &Input, seed: u64) -> Option<Augment> {
        let Input { margin, flip, .. } = *input;
        (margin > 0 || flip).then_some(Augment { seed, margin, flip })
    }

    /// Puts a window for each of the `count` pictures of minibatch `number` into `windows`, in place of what was there.
    pub fn windows(&self, number: u64, count: usize, windows: &mut Vec<Window>) {
        let mut rng = rng::stream(self.seed, "augment", number);
        windows.clear();
        windows.extend((0..count).map(|_| {
            // As many numbers whether pictures are mirrored or not: the windows stay the same.
            let (top, left) = (rng.random_range(0..=self.margin), rng.random_range(0..=self.margin));
            Window { top, left, flip: rng.random::<bool>() && self.flip }
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::dataset::Dataset;

    fn drawn(input: &Input, seed: u64, number: u64, count: usize) -> Vec<Window> {
        let mut windows = vec![Window::middle(0); 3];
        Augment::new(input, seed).unwrap().windows(number, count, &mut windows);
        windows
    }

    #[test]
    fn every_place_occurs_mirrored_or_not_about_equally_often_and_a_minibatch_repeats_by_its_number() {
        let input = Input { margin: 3, flip: true, ..Input::default() };
        let all: Vec<Window> = (0..100).flat_map(|number| drawn(&input, 5, number, 64)).collect();
        for (top, left) in (0..=3).flat_map(|top| (0..=3).map(move |left| (top, left))) {
            for flip in [false, true] {
                let count = all.iter().filter(|window| **window == Window { top, left, flip }).count();
                assert!((140..260).contains(&count), "{count} of 6400 at {top}, {left}, {flip}");
            }
        }
        assert_eq!(drawn(&input, 5, 7, 64), all[7 * 64..8 * 64]);
        assert_ne!(drawn(&input, 5, 8, 64), all[7 * 64..8 * 64]);
        assert_ne!(drawn(&input, 6, 7, 64), all[7 * 64..8 * 64]);
        let unflipped = drawn(&Input { flip: false, ..input }, 5, 7, 64);
        let same = |(a, b): (&Window, &Window)| (a.top, a.left, a.flip) == (b.top, b.left, false);
        assert!(unflipped.iter().zip(&all[7 * 64..]).all(same));
        assert!(Augment::new(&Input::default(), 5).is_none());
    }

    #[test]
    fn a_window_shows_its_part_of_the_picture_and_pixels_are_those_in_the_middle() {
        let (shape, margin) = (MapShape { channels: 3, rows: 2, cols: 4 }, 3);
        let kept = shape.with_margin(margin);
        let at = |picture: usize, c: usize, y: usize, x: usize| (picture * 105 + (c * 5 + y) * 7 + x) as u8;
        let pixels = (0..2 * kept.len()).map(|n| n as u8).collect();
        let dataset = Dataset::from_pixels_with_margin(shape, margin, pixels);
        assert_eq!((dataset.len(), dataset.kept, dataset.margin()), (2, kept, 3));
        let mut seen = HashSet::new();
        for (top, left) in (0..=margin).flat_map(|top| (0..=margin).map(move |left| (top, left))) {
            for flip in [false, true] {
                let mut out = vec![0; shape.len()];
                dataset.cut(1, Window { top, left, flip }, &mut out);
                for (n, &pixel) in out.iter().enumerate() {
                    let (c, y, x) = (n / 8, n / 4 % 2, n % 4);
                    assert_eq!(pixel, at(1, c, top + y, left + if flip { 3 - x } else { x }));
                }
                seen.insert(out);
            }
        }
        assert_eq!(seen.len(), 32);
        let mut middle = vec![0; shape.len()];
        dataset.cut(0, Window { top: 1, left: 1, flip: false }, &mut middle);
        assert_eq!(dataset.pixels(0)[..], middle);
    }
}
