//! How a unit's answer depends on where in a picture the object is, how large, and how it is turned, where that is known.

use serde::{Deserialize, Serialize};

use super::explain::spearman;
use crate::frames::labels::Truth;

/// Parts of equally many pictures that each quantity is cut into.
const PARTS: usize = 5;

/// A quantity, and how it is read off.
type Quantity = (&'static str, fn(&Truth) -> f64);

/// How values depend on one quantity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dependence {
    /// The quantity; shares are of what the network sees.
    pub of: String,
    /// Spearman's rank correlation of the unit's values with it.
    pub correlation: f64,
    /// From the least to the greatest, of equally many pictures each.
    pub parts: Vec<Fifth>,
}

/// Pictures in which a quantity is alike.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Fifth {
    /// Its least and its greatest value.
    pub range: [f64; 2],
    /// Mean value of the unit.
    pub mean: f64,
    /// Share of them to which the unit says "yes".
    pub detected: f64,
}

/// How a unit's `values` for pictures that show an object depend on what is known of it. The unit says "yes" above `threshold`.
///
/// # Panics
/// If there are no pictures, or not a value for each.
pub fn dependence(truths: &[Truth], values: &[f32], threshold: f64) -> Vec<Dependence> {
    assert!(!truths.is_empty() && truths.len() == values.len(), "a value for each picture");
    let quantities: [Quantity; 9] = [
        ("height, share", |truth| truth.height),
        ("middle, across", |truth| truth.x),
        ("middle, down", |truth| truth.y),
        ("distance from the centre", |truth| (truth.x - 0.5).hypot(truth.y - 0.5)),
        ("yaw, degrees", |truth| truth.yaw),
        ("yaw either way, degrees", |truth| truth.yaw.abs()),
        ("roll, degrees", |truth| truth.roll),
        ("roll either way, degrees", |truth| truth.roll.abs()),
        ("share that shows", |truth| truth.visible),
    ];
    let of_quantity = |(name, quantity): Quantity| {
        let amounts: Vec<f64> = truths.iter().map(quantity).collect();
        let mut order: Vec<usize> = (0..amounts.len()).collect();
        order.sort_by(|&a, &b| amounts[a].total_cmp(&amounts[b]));
        let parts = (0..PARTS).filter_map(|part| {
            let cut = |part: usize| part * order.len() / PARTS;
            let here = &order[cut(part)..cut(part + 1)];
            let (first, last) = (here.first()?, here.last()?);
            let share = |sum: f64| sum / here.len() as f64;
            Some(Fifth {
                range: [amounts[*first], amounts[*last]],
                mean: share(here.iter().map(|&n| f64::from(values[n])).sum()),
                detected: share(here.iter().filter(|&&n| f64::from(values[n]) > threshold).count() as f64),
            })
        });
        let parts = parts.collect();
        let all: Vec<f64> = values.iter().map(|&value| value.into()).collect();
        Dependence { of: name.into(), correlation: spearman(&all, &amounts), parts }
    };
    quantities.into_iter().map(of_quantity).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_of_large_heads_is_told_by_their_height() {
        let truth = |n: usize| {
            let share = n as f64 / 100.0;
            Truth { x: 0.5, y: share, height: share, roll: 0.0, yaw: n as f64 - 50.0, visible: 1.0 }
        };
        let truths: Vec<Truth> = (0..100).map(truth).collect();
        let values: Vec<f32> = (0..100).map(|n| (n as f32).powi(2)).collect();
        let found = dependence(&truths, &values, 59.5f64.powi(2));
        let of = |name: &str| found.iter().find(|d| d.of.starts_with(name)).unwrap();
        let height = of("height");
        assert!((height.correlation - 1.0).abs() < 1e-9 && height.parts.len() == PARTS);
        assert_eq!(height.parts[1].range, [0.2, 0.39]);
        assert_eq!(
            height.parts.iter().map(|part| part.detected).collect::<Vec<_>>(),
            [0.0, 0.0, 0.0, 1.0, 1.0]
        );
        let mean = (20..40).map(|n| f64::from(n * n)).sum::<f64>() / 20.0;
        assert!((height.parts[1].mean - mean).abs() < 1e-9);
        // All are in the middle: nothing depends on it.
        assert_eq!(of("middle, across").correlation, 0.0);
        // Symmetric: little correlation, and both ends are in one part.
        assert!(of("yaw either way").correlation.abs() < 0.1 && of("yaw, degrees").correlation > 0.99);
    }
}
