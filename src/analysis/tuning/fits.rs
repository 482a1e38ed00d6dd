//! Tuning curves fitted to responses: von Mises over orientation, log-Gaussian over frequency.
//!
//! Given centre and width, height and offset follow from linear least squares; so only two numbers are searched, first on a grid
//! and then in steps that halve. That finds the best fit without a start to choose.

use std::f64::consts::{LN_2, PI};

/// Halvings of the steps after the grid.
const ROUNDS: usize = 24;

/// `offset + height · shape(x)`, fitted by least squares with neither below 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// Where it is highest.
    pub centre: f64,
    /// Concentration κ of the von Mises curve, or σ of the Gaussian in octaves.
    pub width: f64,
    /// Height above the offset.
    pub height: f64,
    /// What is added everywhere.
    pub offset: f64,
    /// Share of the variance of the responses that it explains.
    pub r_squared: f64,
}

/// Fits `offset + height · exp(κ (cos 2(θ - centre) - 1))` to responses at orientations spread evenly over 180 degrees (Swindale
/// 1998). Curves narrower than the steps between orientations are not tried: one point would make them.
pub fn von_mises(orientations_deg: &[f64], responses: &[f64]) -> Fit {
    let step = PI / orientations_deg.len() as f64;
    let shape =
        |at: f64, centre: f64, kappa: f64| (kappa * ((2.0 * (at - centre).to_radians()).cos() - 1.0)).exp();
    // The half width at half height is at least half a step.
    let narrowest = LN_2 / (1.0 - step.cos());
    // A little past both ends, so that no peak lies at a limit.
    let fit = search(orientations_deg, responses, (-10.0, 190.0), (0.05, narrowest), true, shape);
    Fit { centre: fit.centre.rem_euclid(180.0), ..fit }
}

/// Fits `height · exp(-(log2 f - log2 centre)² / 2σ²)`, σ in octaves, to responses at frequencies in equal steps of octaves.
/// The centre is sought up to one step beyond the first and last. Its bandwidth is at least a step.
pub fn log_gaussian(frequencies: &[f64], responses: &[f64]) -> Fit {
    let octaves: Vec<f64> = frequencies.iter().map(|f| f.log2()).collect();
    let (first, last) = (octaves[0], octaves[octaves.len() - 1]);
    let step = octaves[1] - first;
    let shape = |at: f64, centre: f64, sigma: f64| (-0.5 * ((at - centre) / sigma).powi(2)).exp();
    let widths = (step / BANDWIDTHS, 4.0 * (last - first));
    let fit = search(&octaves, responses, (first - step, last + step), widths, false, shape);
    Fit { centre: fit.centre.exp2(), ..fit }
}

/// Full width at half height of a Gaussian, in σ: `2 √(2 ln 2)`.
const BANDWIDTHS: f64 = 2.354_820_045_030_949;

/// Half the width at half of its height of a von Mises curve, in degrees; none where it never falls as low.
pub fn half_width_deg(kappa: f64) -> Option<f64> {
    let cosine = 1.0 - LN_2 / kappa;
    (cosine >= -1.0).then(|| 0.5 * cosine.acos().to_degrees())
}

/// Width at half height of a log-Gaussian curve, in octaves.
pub fn bandwidth_octaves(sigma: f64) -> f64 {
    BANDWIDTHS * sigma
}

/// `1 - |Σ r e^{2iθ}| / Σ r`: 0 for a unit that answers to one orientation only, 1 for one that answers to all alike (Ringach et
/// al. 2002). 1 where there is no response.
pub fn circular_variance(orientations_deg: &[f64], responses: &[f64]) -> f64 {
    let sum: f64 = responses.iter().sum();
    let along = |f: fn(f64) -> f64| -> f64 {
        orientations_deg.iter().zip(responses).map(|(at, r)| r * f(2.0 * at.to_radians())).sum()
    };
    if sum > 0.0 { 1.0 - along(f64::cos).hypot(along(f64::sin)) / sum } else { 1.0 }
}

/// The best of all centres and widths between these limits.
fn search(
    xs: &[f64],
    ys: &[f64],
    centres: (f64, f64),
    widths: (f64, f64),
    with_offset: bool,
    shape: impl Fn(f64, f64, f64) -> f64,
) -> Fit {
    const CENTRES: usize = 48;
    const WIDTHS: usize = 24;
    let mut values = vec![0.0; xs.len()];
    let mut attempt = |centre: f64, log_width: f64| {
        let width = log_width.exp();
        values.iter_mut().zip(xs).for_each(|(value, &x)| *value = shape(x, centre, width));
        let (height, offset, r_squared) = linear(&values, ys, with_offset);
        Fit { centre, width, height, offset, r_squared }
    };
    let (narrow, wide) = (widths.0.ln(), widths.1.ln());
    let mut steps = ((centres.1 - centres.0) / CENTRES as f64, (wide - narrow) / WIDTHS as f64);
    let grid = (0..=CENTRES).flat_map(|c| (0..=WIDTHS).map(move |w| (c as f64, w as f64)));
    let mut best = grid
        .map(|(c, w)| attempt(centres.0 + c * steps.0, narrow + w * steps.1))
        .reduce(|best, next| if next.r_squared > best.r_squared { next } else { best })
        .expect("a grid is not empty");
    for _ in 0..ROUNDS {
        steps = (steps.0 / 2.0, steps.1 / 2.0);
        let (centre, width) = (best.centre, best.width.ln());
        for (c, w) in (-1..=1).flat_map(|c| (-1..=1).map(move |w| (f64::from(c), f64::from(w)))) {
            let centre = (centre + c * steps.0).clamp(centres.0, centres.1);
            let near = attempt(centre, (width + w * steps.1).clamp(narrow, wide));
            if near.r_squared > best.r_squared {
                best = near;
            }
        }
    }
    best
}

/// Height and offset, neither below 0, that bring `offset + height · values` nearest to `ys`; and the share of variance explained.
fn linear(values: &[f64], ys: &[f64], with_offset: bool) -> (f64, f64, f64) {
    let n = ys.len() as f64;
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let (sum_v, sum_y) = (values.iter().sum::<f64>(), ys.iter().sum::<f64>());
    let (vv, vy) = (dot(values, values), dot(values, ys));
    let spread = vv - sum_v * sum_v / n;
    let mut height =
        if with_offset && spread > 1e-12 { (vy - sum_v * sum_y / n) / spread } else { vy / vv.max(1e-300) };
    let mut offset = if with_offset { (sum_y - height * sum_v) / n } else { 0.0 };
    if height < 0.0 {
        (height, offset) = (0.0, sum_y / n);
    }
    if offset < 0.0 {
        (height, offset) = ((vy / vv.max(1e-300)).max(0.0), 0.0);
    }
    let total = dot(ys, ys) - sum_y * sum_y / n;
    let left: f64 = values.iter().zip(ys).map(|(v, y)| (y - offset - height * v).powi(2)).sum();
    (height, offset, if total > 1e-12 * dot(ys, ys) { 1.0 - left / total } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_von_mises_curve_is_found_again_across_the_ends() {
        let at: Vec<f64> = (0..12).map(|n| 15.0 * f64::from(n)).collect();
        for (centre, kappa) in [(3.0, 2.5), (178.0, 0.8), (92.3, 6.0)] {
            let ys: Vec<f64> = at
                .iter()
                .map(|x| 0.5 + 3.0 * (kappa * ((2.0 * (x - centre).to_radians()).cos() - 1.0f64)).exp())
                .collect();
            let fit = von_mises(&at, &ys);
            let off = (fit.centre - centre + 90.0).rem_euclid(180.0) - 90.0;
            assert!(off.abs() < 0.1 && (fit.width / kappa - 1.0).abs() < 0.02, "{fit:?}");
            assert!(
                (fit.height - 3.0).abs() < 0.05 && (fit.offset - 0.5).abs() < 0.05 && fit.r_squared > 0.9999
            );
        }
    }

    #[test]
    fn widths_are_those_at_half_height() {
        for kappa in [0.5, 2.0, 10.0] {
            let half = half_width_deg(kappa).unwrap();
            let height = (kappa * ((2.0 * half.to_radians()).cos() - 1.0)).exp();
            assert!((height - 0.5).abs() < 1e-12);
        }
        assert_eq!(half_width_deg(0.3), None);
        let half = bandwidth_octaves(0.7) / 2.0;
        assert!(((-0.5 * (half / 0.7f64).powi(2)).exp() - 0.5).abs() < 1e-12);
    }

    #[test]
    fn a_log_gaussian_curve_is_found_again() {
        let at: Vec<f64> = (0..8).map(|n| 2f64.powf(f64::from(n) / 2.0 - 5.0)).collect();
        let ys: Vec<f64> = at.iter().map(|f| 4.0 * (-0.5 * ((f.log2() + 3.2) / 0.6).powi(2)).exp()).collect();
        let fit = log_gaussian(&at, &ys);
        assert!((fit.centre.log2() + 3.2).abs() < 1e-3 && (fit.width - 0.6).abs() < 1e-3, "{fit:?}");
        assert!((fit.height - 4.0).abs() < 1e-2 && fit.offset == 0.0 && fit.r_squared > 0.9999);
    }

    #[test]
    fn no_tuning_has_circular_variance_1_and_one_orientation_0() {
        let at: Vec<f64> = (0..12).map(|n| 15.0 * f64::from(n)).collect();
        let one: Vec<f64> = (0..12).map(|n| f64::from(u8::from(n == 4))).collect();
        assert!((circular_variance(&at, &[2.0; 12]) - 1.0).abs() < 1e-12);
        assert!(circular_variance(&at, &one).abs() < 1e-12);
        assert_eq!(circular_variance(&at, &[0.0; 12]), 1.0);
        assert!(von_mises(&at, &[2.0; 12]).r_squared.abs() < 1e-9);
    }
}
