//! Tests of [`super`].

use super::*;

const ONE_STAGE: &str = "[input]\nheight = 20\nwidth = 16\n[[stages]]\nmaps = 4\nfield = 7\npool = 3\n\
                         [training]\nsteps = [10]\n";

fn error(text: &str, overrides: &[&str]) -> String {
    let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
    RunConfig::parse(text, &overrides).unwrap_err().to_string()
}

#[test]
fn settings_survive_a_round_trip_with_defaults_filled_in() {
    let config =
        RunConfig::parse(ONE_STAGE, &["stages.1.maps=6".into(), "input.preprocess=none".into()]).unwrap();
    assert_eq!((config.stages[0].maps, config.input.preprocess), (6, Preprocess::None));
    assert_eq!(RunConfig::parse(&config.to_toml(), &[]).unwrap(), config);
}

#[test]
fn unknown_keys_are_refused_with_the_nearest_valid_one() {
    let misspelt = ONE_STAGE.replace("field = 7", "feild = 7");
    assert_eq!(error(&misspelt, &[]), "unknown setting `stages.1.feild`, did you mean `stages.field`?");
    assert_eq!(
        error(ONE_STAGE, &["training.learning_rate=1"]),
        "unknown setting `training.learning_rate`, did you mean `training.rate`?"
    );
    assert_eq!(error(ONE_STAGE, &["trainin.rate=1"]), "unknown setting `trainin`, did you mean `training`?");
}

#[test]
fn wrong_types_and_ranges_name_key_value_and_wish() {
    for (overrides, message) in [
        (
            ["stages.1.maps=\"many\""],
            "setting `stages.1.maps` is string \"many\", expected a whole number, 0 or more",
        ),
        (["training.rate=-1"], "setting `training.rate` is -1, expected a number above 0"),
        (["stages.1.field=19"], "stage 1: a 19x19 receptive field does not fit a 20x16 map"),
        (["stages.2.maps=1"], "setting `--set` is stages.2.maps, expected a stage from 1 to 1"),
        (
            ["stages=3"],
            "setting `--set` is stages=3, expected one setting, such as training.rate=0.01 or stages.2.maps=32",
        ),
        (["input.lcn_size=8"], "setting `input.lcn_size` is 8, expected an odd number from 3 to 31"),
        (
            ["input.margin=16380"],
            "setting `input.margin` is 16380, expected at most 16364 pixels beside 16x20",
        ),
        (["input.margin=-1"], "setting `input.margin` is integer `-1`, expected a whole number, 0 or more"),
        (["input.channels=2"], "setting `input.channels` is 2, expected 1 (grey) or 3 (RGB)"),
    ] {
        assert_eq!(error(ONE_STAGE, &overrides), message);
    }
}

#[test]
fn all_shipped_configs_load_and_the_paper_has_its_2_433_billion_weights() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let config = RunConfig::load(&path, &[]).unwrap();
        let weights: u64 = config.shapes().iter().map(|stage| 2 * stage.connections()).sum();
        if path.file_stem().unwrap().to_string_lossy().starts_with("paper") {
            assert_eq!(weights, 2_433_716_928, "{}", path.display());
        }
    }
}

#[test]
fn differences_name_each_changed_key() {
    let before = RunConfig::parse(ONE_STAGE, &[]).unwrap();
    let after = RunConfig::parse(ONE_STAGE, &["training.rate=0.5".into(), "stages.1.maps=5".into()]).unwrap();
    assert_eq!(before.differences(&after), ["stages.1.maps: 4 -> 5", "training.rate: 0.02 -> 0.5"]);
    assert!(before.differences(&before.clone()).is_empty());
}
