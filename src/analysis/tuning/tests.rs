use super::fields::receptive_fields;
use super::gratings::{Density, position};
use super::*;
use crate::config::RunConfig;
use crate::geometry::MapShape;
use crate::network::preprocess::{Transform, Whitening};
use crate::network::{Network, Weights};

/// Four filters of 16x16 on 17x17 pixels, pooled to one unit.
const CONFIG: &str = "[input]\nheight = 17\nwidth = 17\npreprocess = \"none\"\n\
    [[stages]]\nmaps = 1\nfield = 16\npool = 2\nlcn = 0\nepsilon = 1e-6\n[training]\nsteps = [1]\n";
const DENSITY: Density = Density { orientations: 12, frequencies: 8, phases: 12, positions: 34 };
const SIGMA: f64 = 3.2;

/// A Gabor patch.
#[derive(Clone, Copy)]
struct Gabor {
    orientation_deg: f64,
    frequency_per_px: f64,
    phase_deg: f64,
    /// Of its envelope, across its stripes.
    offset_px: f64,
}

impl Gabor {
    fn at(&self, shape: MapShape, row: usize, col: usize) -> f32 {
        let across = position(shape, self.orientation_deg, row, col);
        let along = position(shape, self.orientation_deg + 90.0, row, col);
        let square = (across - self.offset_px).powi(2) + along.powi(2);
        let wave = std::f64::consts::TAU * self.frequency_per_px * across - self.phase_deg.to_radians();
        ((-0.5 * square / SIGMA.powi(2)).exp() * wave.cos()) as f32
    }
}

/// A network whose simple unit at each of four positions has a filter that is `filters` of the whole picture.
fn network(filters: [Option<Gabor>; 4]) -> Network {
    let network = Network::new(&RunConfig::parse(CONFIG, &[]).unwrap(), 0).unwrap();
    for row in 0..2 {
        let weights = (0..2).flat_map(|col| {
            let gabor = filters[2 * row + col];
            let place = (0..16).flat_map(move |dy| (0..16).map(move |dx| (row + dy, col + dx)));
            place.map(move |(y, x)| gabor.map_or(0.0, |g| g.at(network_shape(), y, x)))
        });
        network.stages[0].set_weights(Weights::Encoder, row, weights);
    }
    network
}

fn network_shape() -> MapShape {
    MapShape { channels: 1, rows: 17, cols: 17 }
}

fn measure(network: &Network, kind: Kind) -> Vec<UnitTuning> {
    let whitening = Whitening { shape: network.input, transform: Transform::None };
    let screen = Screen { network, whitening: &whitening, last: 0 };
    let grid = Grid::new(network.input, &DENSITY).unwrap();
    tune(&screen, kind, &network.units(0, kind), &grid, |_| ())
}

fn between(a: f64, b: f64, period: f64) -> f64 {
    ((a - b + period / 2.0).rem_euclid(period) - period / 2.0).abs()
}

#[test]
fn a_gabor_filter_has_the_orientation_frequency_phase_and_place_it_was_made_with() {
    for (orientation_deg, frequency_per_px, phase_deg, offset_px) in
        [(20.0, 0.16, 0.0, 2.0), (95.0, 0.2, 180.0, -1.5), (142.0, 0.14, 75.0, 0.0), (1.0, 0.18, 270.0, 0.0)]
    {
        let gabor = Gabor { orientation_deg, frequency_per_px, phase_deg, offset_px };
        let network = network([Some(gabor), None, None, None]);
        let found = measure(&network, Kind::A);
        let tuning = found[0].tuning.as_ref().unwrap();
        let (orientation, frequency) = (&tuning.orientation, &tuning.frequency);
        assert!(between(orientation.preferred_deg, orientation_deg, 180.0) < 2.0, "{orientation:?}");
        // Within half a step: a Gabor filter's curve is a Gaussian over frequency itself, not over its logarithm.
        let octaves = (frequency.preferred_per_px / frequency_per_px).log2().abs();
        let step = Grid::new(network.input, &DENSITY).unwrap().octave_step();
        assert!(octaves < step / 2.0, "{octaves} octaves: {frequency:?}");
        assert!(orientation.r_squared > 0.97 && frequency.r_squared > 0.9, "{orientation:?} {frequency:?}");
        // Of the Gaussian envelope: `exp(-(2π σ f sin δ)² / 2)` is ½ at the half width.
        let half = (1.1774 / (std::f64::consts::TAU * SIGMA * frequency_per_px)).asin().to_degrees();
        assert!(
            (orientation.half_width_deg.unwrap() / half - 1.0).abs() < 0.2,
            "{orientation:?}, not {half}"
        );
        assert!(
            orientation.circular_variance < 0.6 && orientation.selectivity_index > 0.9,
            "{orientation:?}"
        );
        // The best grating's frequency is not quite the filter's: its phase in the middle shifts by what that makes
        // over the offset.
        let allowed =
            12.0 + 360.0 * offset_px.abs() * (tuning.grating_frequency_per_px - frequency_per_px).abs();
        assert!(between(tuning.phase_deg, phase_deg, 360.0) < allowed, "{tuning:?}");
        assert_eq!(tuning.class, Class::Simple);
        // The half-rectified sinusoid.
        let modulation = tuning.modulation;
        assert!((modulation / std::f64::consts::FRAC_PI_2 - 1.0).abs() < 0.05, "F1/F0 {modulation}");
        // The other filters are zero.
        assert!(
            found[1..].iter().all(|unit| unit.silent == Some(Silence::Constant) && unit.tuning.is_none())
        );
    }
}

#[test]
fn bars_find_where_a_filter_lies_and_how_wide_its_stripe_is() {
    // The phase puts a bright, or dark, stripe in the middle of the envelope.
    for (offset_px, light) in [(3.0, true), (-2.0, false)] {
        let (orientation_deg, frequency_per_px) = (60.0, 0.15);
        let phase_deg = 360.0 * frequency_per_px * offset_px + if light { 0.0 } else { 180.0 };
        let gabor = Gabor { orientation_deg, frequency_per_px, phase_deg, offset_px };
        let network = network([None, Some(gabor), None, None]);
        let found = measure(&network, Kind::A);
        let position = found[1].tuning.as_ref().unwrap().position.as_ref().unwrap();
        assert_eq!(position.light, light);
        assert!((position.preferred_px - offset_px).abs() < 0.4, "{position:?}");
        // A stripe of half a cycle is 3.3 pixels wide, two thirds of that above half its height.
        let width = position.width_px.unwrap();
        assert!((1.8..3.6).contains(&width), "{width} px");
        assert!((0.2..0.9).contains(&position.other_share), "{position:?}");
    }
}

#[test]
fn a_pooled_quadrature_pair_is_complex_and_one_pooled_filter_is_not_told_apart_by_sign() {
    let gabor =
        |phase_deg| Gabor { orientation_deg: 105.0, frequency_per_px: 0.17, phase_deg, offset_px: 0.0 };
    let pair = measure(&network([Some(gabor(0.0)), Some(gabor(90.0)), None, None]), Kind::H);
    let tuning = pair[0].tuning.as_ref().unwrap();
    assert!(tuning.modulation < 0.2 && tuning.class == Class::Complex, "{tuning:?}");
    assert!(between(tuning.orientation.preferred_deg, 105.0, 180.0) < 2.0, "{tuning:?}");
    assert!((tuning.frequency.preferred_per_px / 0.17).log2().abs() < 0.15, "{tuning:?}");
    // Light and dark bars drive it alike.
    assert!(tuning.position.as_ref().unwrap().other_share > 0.85, "{tuning:?}");
    // |cos| repeats twice a cycle: no first harmonic either.
    let single = measure(&network([Some(gabor(0.0)), None, None, None]), Kind::H);
    assert!(single[0].tuning.as_ref().unwrap().modulation < 0.05);
}

#[test]
fn a_unit_that_is_only_suppressed_says_so() {
    // A filter's value for grey, when a very low frequency is all it sees, can only fall if nothing is brighter: here
    // the response is turned around by hand.
    let waves: Vec<(f32, f32)> = (0..4).map(|_| (0.0, 0.0)).collect();
    let lowered = harmonics(&[0.5, 0.4, 0.3, 0.5], 1.0, &waves);
    assert_eq!((lowered.f0, lowered.f1()), (0.0, 0.0));
    let network = network([None; 4]);
    let whitening = Whitening { shape: network.input, transform: Transform::None };
    let screen = Screen { network: &network, whitening: &whitening, last: 0 };
    let grid = Grid::new(network.input, &DENSITY).unwrap();
    let units = network.units(0, Kind::A);
    let measurement = Measurement { screen: &screen, kind: Kind::A, units: &units, grid: &grid };
    let tuning = measurement.tuning(units[0], 1.0, &vec![lowered; grid.conditions()]);
    assert_eq!((tuning.silent, tuning.tuning), (Some(Silence::OnlySuppressed), None));
}

#[test]
fn the_receptive_field_lies_where_the_filter_does_and_noise_finds_the_filter() {
    let gabor = Gabor { orientation_deg: 0.0, frequency_per_px: 0.17, phase_deg: 0.0, offset_px: 3.0 };
    let network = network([Some(gabor), None, None, None]);
    let whitening = Whitening { shape: network.input, transform: Transform::None };
    let screen = Screen { network: &network, whitening: &whitening, last: 0 };
    let units = network.units(0, Kind::A);
    let fields = receptive_fields(&screen, Kind::A, &units, 4000, 1, || ());
    // 3 pixels above the middle, which is row and column 8.
    let place = fields[0].place.unwrap();
    assert!((place.row - 5.0).abs() < 0.5 && (place.col - 8.0).abs() < 0.2, "{place:?}");
    // Energy falls as exp(-r²/σ²): a root mean square distance of about σ.
    assert!((0.8..1.2).contains(&(place.radius_px / SIGMA)), "{place:?}");
    let average = fields[0].average.as_ref().unwrap();
    let filter = network.stages[0].filter(Weights::Encoder, units[0]);
    let seen = average.slice(ndarray::s![.., 0..16, 0..16]);
    let cosine = (&seen * &filter).sum() / ((&seen * &seen).sum() * (&filter * &filter).sum()).sqrt();
    assert!(cosine > 0.95, "cosine {cosine}");
    // Filters of zeros look nowhere.
    assert!(fields[1..].iter().all(|field| field.place.is_none()));
    let again = receptive_fields(&screen, Kind::A, &units, 4000, 1, || ());
    assert!(fields.iter().zip(&again).all(|(a, b)| a.average == b.average && a.energy == b.energy));
}
