use ndarray_rand::rand_distr::{Distribution, StandardNormal};

use super::*;
use crate::classify::scores::scores;

fn settings(method: Method, lambdas: &[f64]) -> Settings {
    Settings { method, lambdas: lambdas.to_vec(), folds: 4, seed: 3, tolerance: 1e-6, steps: 2000 }
}

/// Pictures around a centre for each class.
fn clouds(pictures: usize, width: usize, classes: usize) -> (Array2<f32>, Vec<usize>) {
    let mut rng = rng::stream(5, "clouds", 0);
    let mut draw = || -> f32 { StandardNormal.sample(&mut rng) };
    let centres = Array2::from_shape_simple_fn((classes, width), &mut draw);
    let class: Vec<usize> = (0..pictures).map(|n| n * n % 7 % classes).collect();
    let features = Array2::from_shape_fn((pictures, width), |(n, at)| centres[[class[n], at]] + 2.0 * draw());
    (features, class)
}

#[test]
fn accuracy_and_loss_are_those_of_scikit_learn() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/readout.json");
    let golden: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let train = golden["train"].as_u64().unwrap() as usize;
    let rows = golden["features"].as_array().unwrap();
    let numbers: Vec<f32> =
        rows.iter().flat_map(|row| row.as_array().unwrap()).map(|x| x.as_f64().unwrap() as f32).collect();
    let all = Array2::from_shape_vec((rows.len(), 64), numbers).unwrap();
    let class: Vec<usize> =
        golden["class"].as_array().unwrap().iter().map(|c| c.as_u64().unwrap() as usize).collect();
    let names: Vec<String> = (0..10).map(|c| c.to_string()).collect();
    let fits = golden["fits"].as_array().unwrap();
    assert_eq!(fits.len(), 4);
    for wanted in fits {
        let method: Method = serde_json::from_value(wanted["method"].clone()).unwrap();
        let lambda = wanted["lambda"].as_f64().unwrap();
        let mut features = all.slice(ndarray::s![..train, ..]).to_owned();
        let fitted = fit(&mut features, &class[..train], 10, &settings(method, &[lambda]), |_| ()).unwrap();
        let mut numbers = all.slice(ndarray::s![train.., ..]).dot(&fitted.weights.t());
        numbers.rows_mut().into_iter().for_each(|mut row| {
            row.iter_mut().zip(&fitted.bias).for_each(|(x, bias)| *x += bias);
            probabilities(method, row.as_slice_mut().unwrap());
        });
        let scores = scores(numbers.as_slice().unwrap(), &class[train..], &names);
        for (what, got, bound) in [
            ("objective", fitted.tried[0].objective, 1e-4),
            ("accuracy", scores.top_1, 1e-3),
            ("log_loss", scores.log_loss, 1e-4),
        ] {
            let want = wanted[what].as_f64().unwrap();
            assert!((got - want).abs() < bound, "{method:?}, λ {lambda}: {what} {got}, scikit-learn {want}");
        }
        assert!(fitted.tried[0].converged, "{method:?}, λ {lambda}: {:?}", fitted.tried);
    }
}

#[test]
fn the_gradient_meets_central_differences() {
    let (mut features, class) = clouds(60, 5, 3);
    standardise(&mut features);
    let mut rng = rng::stream(6, "point", 0);
    for method in [Method::Softmax, Method::Logistic] {
        let settings = settings(method, &[0.1, 0.01]);
        let problem = Problem::new(features.view(), &class, 3, &settings, folds(&class, &settings).unwrap());
        let point: Vec<f64> = (0..problem.len()).map(|_| StandardNormal.sample(&mut rng)).collect();
        let (_, gradient, _) = problem.value(&point, 0.1);
        for at in (0..point.len()).step_by(7) {
            let step = 1e-2;
            let beside = |by: f64| {
                let mut beside = point.clone();
                beside[at] += by;
                problem.value(&beside, 0.1).0
            };
            let wanted = (beside(step) - beside(-step)) / (2.0 * step);
            assert!((gradient[at] - wanted).abs() < 2e-4, "{method:?} {at}: {}, not {wanted}", gradient[at]);
        }
    }
}

#[test]
fn cross_validation_is_that_of_models_fitted_one_by_one_and_takes_the_best() {
    let (features, class) = clouds(210, 12, 3);
    let settings = settings(Method::Softmax, &[0.3, 0.03, 0.003]);
    let fold = folds(&class, &settings).unwrap();
    let of_class = |wanted: usize, of_fold: usize| {
        fold.iter().zip(&class).filter(|&(&fold, &class)| fold == of_fold && class == wanted).count()
    };
    for wanted in 0..3 {
        let counts: Vec<usize> = (0..4).map(|fold| of_class(wanted, fold)).collect();
        assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1, "{counts:?}");
    }
    let fitted = fit(&mut features.clone(), &class, 3, &settings, |_| ()).unwrap();
    // Features are standardised by all pictures there, so here too.
    let mut standard = features.clone();
    let (mean, scale) = standardise(&mut standard);
    for tried in &fitted.tried {
        let (mut right, mut log_loss) = (0, 0.0);
        for held_out in 0..4 {
            let of = |wanted: bool| -> Vec<usize> {
                (0..class.len()).filter(|&n| (fold[n] == held_out) == wanted).collect()
            };
            let (train, test) = (of(false), of(true));
            let mut few = standard.select(ndarray::Axis(0), &train);
            let classes: Vec<usize> = train.iter().map(|&n| class[n]).collect();
            let settings = Settings { lambdas: vec![tried.lambda], ..settings.clone() };
            // It may stretch each feature by a little, which changes what λ means: undone by comparing loosely.
            let one = fit(&mut few, &classes, 3, &settings, |_| ()).unwrap();
            for n in test {
                let mut numbers: Vec<f32> = one.weights.dot(&standard.row(n)).to_vec();
                numbers.iter_mut().zip(&one.bias).for_each(|(x, bias)| *x += bias);
                probabilities(Method::Softmax, &mut numbers);
                right +=
                    usize::from((0..3).all(|other| other == class[n] || numbers[other] < numbers[class[n]]));
                log_loss -= f64::from(numbers[class[n]]).ln() / class.len() as f64;
            }
        }
        let accuracy = right as f64 / class.len() as f64;
        assert!((tried.accuracy.unwrap() - accuracy).abs() < 0.015, "{tried:?}: {accuracy}");
        assert!((tried.log_loss.unwrap() - log_loss).abs() < 0.02, "{tried:?}: {log_loss}");
    }
    let most = fitted.tried.iter().filter_map(|tried| tried.accuracy).fold(0.0, f64::max);
    let taken = fitted.tried.iter().find(|tried| tried.lambda == fitted.lambda).unwrap();
    assert_eq!(taken.accuracy, Some(most));
    // The weights are those of all pictures at that λ, for features as they were.
    let settings = Settings { lambdas: vec![fitted.lambda], ..settings };
    let alone = fit(&mut features.clone(), &class, 3, &settings, |_| ()).unwrap();
    let off = (&alone.weights - &fitted.weights).iter().fold(0f32, |most, x| most.max(x.abs()));
    assert!(off < 1e-3, "off by {off}");
    assert!(mean.iter().any(|mean| mean.abs() > 0.1) && scale.iter().all(|scale| *scale > 0.0));
}

#[test]
fn a_feature_that_does_not_vary_has_no_weight_and_a_class_of_one_picture_is_refused() {
    let (mut features, class) = clouds(50, 3, 2);
    features.column_mut(1).fill(7.3);
    let fitted = fit(&mut features, &class, 2, &settings(Method::Softmax, &[0.1]), |_| ()).unwrap();
    assert!(fitted.weights.column(1).iter().all(|&weight| weight == 0.0));
    let mut class = vec![0; 50];
    class[4] = 1;
    let error = fit(&mut features, &class, 2, &settings(Method::Softmax, &[0.1, 1.0]), |_| ()).unwrap_err();
    assert!(error.to_string().contains("only one picture"), "{error}");
}
