//! Tests of [`super`].

use std::path::Path;

use super::*;

fn shipped(name: &str, overrides: &[&str]) -> RunConfig {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name);
    RunConfig::load(&path, &overrides.iter().map(|s| s.to_string()).collect::<Vec<_>>()).unwrap()
}

/// A stage on colour pictures of 32x32. A second does not fit on top.
fn large() -> RunConfig {
    let stage = "[[stages]]\nmaps = 64\nfield = 8\nstride = 2\npool = 3\n[training]\nsteps = [1000]\n";
    RunConfig::parse(&format!("[input]\nchannels = 3\n{stage}"), &[]).unwrap()
}

/// A stage on colour pictures of 16x16. A second fits on top, with one position, and no third.
fn small() -> RunConfig {
    let stage = "[[stages]]\nmaps = 32\nfield = 4\npool = 3\npool_stride = 2\n[training]\nsteps = [1000]\n";
    RunConfig::parse(&format!("[input]\nchannels = 3\nheight = 16\nwidth = 16\nmargin = 4\n{stage}"), &[])
        .unwrap()
}

fn budget(cost: f64) -> Budget {
    Budget { cost, memory: u64::MAX, fill: false }
}

fn refused(config: &RunConfig, ratios: Ratios, budget: &Budget) -> String {
    fit(config, ratios, budget).unwrap_err().to_string()
}

/// Takes as long as its arithmetic to some power.
fn clock(config: &RunConfig, power: f64) -> Speed {
    Speed { images_per_second: 1.0, seconds: flops(config, &costs(config)).powf(power) }
}

const ALL: [&str; 3] = ["tiny.toml", "small.toml", "colour32.toml"];

#[test]
fn a_coefficient_of_0_changes_nothing() {
    for name in [&ALL[..], &["scale16.toml", "paper.toml", "faces64.toml"]].concat() {
        let config = shipped(name, &[]);
        assert_eq!(scaled(&config, BASE_RATIOS, 0.0).unwrap(), config, "{name}");
    }
}

#[test]
fn everything_grows_by_its_ratio_and_what_stays_stays() {
    let config = small();
    let grown = scaled(&config, Ratios { resolution: 1.25, maps: 1.5, stages: 2.0 }, 1.0).unwrap();
    assert_eq!((grown.input.height, grown.input.width, grown.input.margin), (20, 20, 5));
    assert_eq!(grown.stages.iter().map(|stage| stage.maps).collect::<Vec<_>>(), [48, 48]);
    assert_eq!(grown.training.steps, [1000, 1000]);
    let mut same = config.clone();
    (same.input, same.stages, same.training.steps) =
        (grown.input.clone(), grown.stages.clone(), vec![1000, 1000]);
    assert_eq!(grown, same);
    assert_eq!(grown.stages[1], grown.stages[0]);
    // Fields of 8 with a stride of 2 see all of 34 pixels, and 34 of 35.
    let large = large();
    let side = |phi| scaled(&large, Ratios::only(Dimension::Resolution), phi).unwrap().input.width;
    assert_eq!([33.0f64, 34.0, 35.0, 36.0].map(|wanted| side((wanted / 32.0).log2())), [32, 34, 34, 36]);
    // Of 17 and 19 pixels pooling windows with a step of 2 leave the last out.
    let side = |phi| scaled(&config, Ratios::only(Dimension::Resolution), phi).unwrap().input.width;
    assert_eq!([17.0f64, 18.0, 19.0, 20.0].map(|wanted| side((wanted / 16.0).log2())), [16, 18, 18, 20]);
}

#[test]
fn stages_that_learn_together_share_their_steps() {
    let config = shipped("paper.toml", &["training.schedule=together", "training.steps=[70]"]);
    let grown = fit(&config, Ratios::only(Dimension::Stages), &budget(2.0)).unwrap();
    assert!(grown.config.stages.len() > 3 && grown.config.training.steps == [70], "{:?}", grown.after);
}

#[test]
fn training_costs_no_more_than_the_budget_and_most_of_it() {
    for name in ALL {
        let config = shipped(name, &[]);
        for cost in [2.0, 4.0] {
            let grown = fit(&config, BASE_RATIOS, &budget(cost)).unwrap();
            assert!(grown.cost <= cost && grown.cost > 0.75 * cost, "{name}: {} of {cost}", grown.cost);
            let ratio = grown.after.training_flops / grown.before.training_flops;
            assert!((grown.cost - ratio).abs() < 1e-9 && grown.time.is_none(), "{name}: {ratio}");
            // The coefficient gives the config, and the config is whole.
            assert_eq!(scaled(&config, BASE_RATIOS, grown.phi).unwrap(), grown.config);
            assert_eq!(RunConfig::parse(&grown.config.to_toml(), &[]).unwrap(), grown.config);
        }
    }
}

#[test]
fn the_rest_of_the_budget_buys_steps() {
    for (config, only) in [(large(), Dimension::Resolution), (small(), Dimension::Stages)] {
        let plain = fit(&config, Ratios::only(only), &budget(3.0)).unwrap();
        let full = fit(&config, Ratios::only(only), &Budget { fill: true, ..budget(3.0) }).unwrap();
        assert!(full.cost <= 3.0 && full.cost > 2.995, "{}", full.cost);
        assert!(full.after.steps[0] > plain.after.steps[0], "{:?}", full.after.steps);
        assert_eq!((full.after.maps, full.after.picture), (plain.after.maps, plain.after.picture));
    }
}

#[test]
fn a_larger_budget_never_gives_less() {
    for name in [&ALL[..], &["scale16.toml", "scale24.toml"]].concat() {
        let config = shipped(name, &[]);
        let mut last = Size::new(&config, None);
        for cost in [2.0, 2.5, 3.0, 4.0, 5.5, 8.0, 16.0, 40.0] {
            let grown = fit(&config, BASE_RATIOS, &budget(cost)).unwrap().after;
            assert!(grown.picture[1] >= last.picture[1] && grown.maps.len() >= last.maps.len(), "{name}");
            assert!(grown.maps.iter().zip(&last.maps).all(|(new, old)| new >= old), "{name}: {grown:?}");
            assert!(grown.training_flops >= last.training_flops, "{name} at {cost}: {grown:?}");
            last = grown;
        }
    }
}

#[test]
fn memory_is_a_bound_too() {
    let config = large();
    let free = fit(&config, BASE_RATIOS, &budget(8.0)).unwrap();
    let memory = free.after.memory - 1;
    let bound = fit(&config, BASE_RATIOS, &Budget { memory, ..budget(8.0) }).unwrap();
    assert!(bound.after.memory <= memory && bound.phi < free.phi && bound.cost > 1.0, "{bound:?}");
    assert!(bound.notes[0].contains(&format!("may take {memory}")), "{:?}", bound.notes);
    let own = memory_bytes(&config, 1);
    let error = refused(&config, BASE_RATIOS, &Budget { memory: own, ..budget(8.0) });
    assert!(error.starts_with("training with 3") && error.contains(&format!("{own} are free")), "{error}");
}

#[test]
fn one_dimension_grows_alone() {
    let config = small();
    let grown = |only| fit(&config, Ratios::only(only), &budget(4.0)).unwrap();
    let (resolution, maps, stages) =
        (grown(Dimension::Resolution), grown(Dimension::Maps), grown(Dimension::Stages));
    assert_eq!((&resolution.after.maps[..], resolution.after.picture), (&[32][..], [3, 28, 28]));
    assert_eq!((&maps.after.maps[..], maps.after.picture), (&[128][..], [3, 16, 16]));
    assert_eq!((&stages.after.maps[..], stages.after.picture), (&[32, 32][..], [3, 16, 16]));
    assert!(resolution.cost > 3.6 && maps.cost == 4.0, "{} and {}", resolution.cost, maps.cost);
    // A third stage would look at one position.
    let note = "no more stages fit: stage 3: a 4x4 receptive field does not fit a 1x1 map";
    assert_eq!(stages.notes, [note]);
    assert!((stages.phi - 1.5f64.log2()).abs() < 0.01, "2 stages of 1: {}", stages.phi);
}

#[test]
fn stages_that_do_not_fit_are_named_and_the_rest_grows() {
    let config = small();
    let grown = fit(&config, Ratios { resolution: 1.05, maps: 1.0, stages: 2.0 }, &budget(4.0)).unwrap();
    assert!(grown.after.maps.len() == 2 && grown.after.picture[1] > 16, "{:?}", grown.after);
    let note = &grown.notes[1];
    assert!(note.contains(" stages were asked for, 2 fit: stage 3: a 4x4 receptive field"), "{note}");
}

#[test]
fn what_cannot_be_is_refused_with_what_could() {
    let (tiny, large) = (shipped("tiny.toml", &[]), large());
    for cost in [1.0, 0.5, -1.0, f64::NAN, f64::INFINITY] {
        let error = refused(&tiny, BASE_RATIOS, &budget(cost));
        assert!(error.starts_with("setting `--budget` is ") && error.contains("above 1"), "{error}");
    }
    for (resolution, maps, stages) in
        [(1.0, 1.0, 1.0), (0.9, 1.5, 1.0), (1.0, f64::NAN, 2.0), (1.0, 11.0, 1.0)]
    {
        let error = refused(&tiny, Ratios { resolution, maps, stages }, &budget(2.0));
        assert!(
            error.starts_with("setting `--ratios` is resolution ") && error.contains("1 to 10"),
            "{error}"
        );
    }
    for wrong in ["", "1", "1,1,1", "1,2", "1,2,x", "1,2,3,4", "0.5,2,2"] {
        assert!(wrong.parse::<Ratios>().is_err(), "{wrong}");
    }
    assert_eq!("1.15, 1.2,1.1".parse(), Ok(Ratios { resolution: 1.15, maps: 1.2, stages: 1.1 }));
    // Of what would be enough, so much is enough.
    let error = refused(&tiny, BASE_RATIOS, &budget(1.01));
    let want = error.split("expected at least ").nth(1).and_then(|rest| rest.split(',').next());
    let want: f64 = want.unwrap_or_else(|| panic!("{error}")).parse().unwrap();
    assert!(fit(&tiny, BASE_RATIOS, &budget(want)).is_ok() && want > 1.01, "{error}");
    let error = refused(&large, Ratios::only(Dimension::Stages), &budget(4.0));
    assert_eq!(error, "stage 2: a 3x3 pooling window does not fit a 2x2 map");
    let error = refused(&tiny, Ratios::only(Dimension::Stages), &budget(4.0));
    assert_eq!(error, "stage 3: a 4x4 receptive field does not fit a 3x3 map");
    // Full whitening is for small pictures.
    let grown = fit(&large, Ratios::only(Dimension::Resolution), &budget(100.0)).unwrap();
    assert_eq!(grown.after.picture, [3, 64, 64]);
    assert!(
        grown.notes[0].contains("`input.preprocess`") && grown.notes[0].contains("conv"),
        "{:?}",
        grown.notes
    );
}

#[test]
fn a_network_that_takes_too_much_time_gives_way_to_a_smaller_one() {
    let config = large();
    let by_arithmetic = fit(&config, BASE_RATIOS, &budget(4.0)).unwrap();
    let mut measured = 0;
    let as_counted = fit_measured(&config, BASE_RATIOS, &budget(4.0), |config| {
        measured += 1;
        Ok(clock(config, 1.0))
    });
    let as_counted = as_counted.unwrap();
    assert!(measured == 2 && as_counted.config == by_arithmetic.config, "measured {measured} times");
    assert!((as_counted.time.unwrap() - as_counted.cost).abs() < 1e-6);

    let slow = |power: f64, fill| {
        let budget = Budget { fill, ..budget(4.0) };
        fit_measured(&config, BASE_RATIOS, &budget, |config| Ok(clock(config, power)))
    };
    let slower = slow(1.5, false).unwrap();
    assert!(slower.phi < by_arithmetic.phi && slower.cost > 1.5, "{slower:?}");
    assert!(slower.time.unwrap() <= 4.4 && slower.time.unwrap() > slower.cost, "{slower:?}");
    assert!(slower.notes[0].contains("a smaller one was taken"), "{:?}", slower.notes);
    let filled = slow(1.5, true).unwrap();
    assert!(filled.time.unwrap() <= 4.4 && filled.cost <= 4.0, "{filled:?}");
    let error = slow(100.0, false).unwrap_err().to_string();
    assert!(error.starts_with("setting `--budget` is 4, expected at least "), "{error}");
}

#[test]
fn a_measured_replica_has_a_rate_for_its_schedule() {
    let config = shipped("tiny.toml", &[]);
    let speed = measure(&config, 2, 0.0).unwrap();
    let images = 400.0 * 32.0;
    assert!(speed.seconds > 0.0 && (speed.images_per_second * speed.seconds / images - 1.0).abs() < 1e-9);
}
