//! How good a classifier is on pictures whose classes are known.

use serde::{Deserialize, Serialize};

use crate::analysis::detector::Ranked;

/// Bins of confidence that calibration is measured in.
const BINS: usize = 10;

/// What there is to say about a classifier.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Pictures that it was tested on.
    pub pictures: usize,
    /// Share of them whose class is the most probable.
    pub top_1: f64,
    /// Wilson's 95 % interval of that.
    pub top_1_interval: [f64; 2],
    /// Share whose class is among the five most probable.
    pub top_5: f64,
    /// Mean negative logarithm of the true class's probability.
    pub log_loss: f64,
    /// Mean distance between confidence and accuracy, over bins of confidence (expected calibration error).
    pub calibration_error: f64,
    /// Pictures by the probability of what was answered, in ten bins of equal width; only those with pictures.
    pub calibration: Vec<Bin>,
    /// Of each class.
    pub classes: Vec<ClassScores>,
    /// Pictures by class, and by what was answered: `[true class][answered]`.
    pub confusion: Vec<Vec<usize>>,
}

/// Answers of about the same confidence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// How many.
    pub pictures: usize,
    /// Mean probability of what was answered.
    pub confidence: f64,
    /// Share that is right.
    pub accuracy: f64,
}

/// A class by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassScores {
    /// Its name.
    pub name: String,
    /// Pictures of it.
    pub pictures: usize,
    /// Of the pictures answered with it, the share that is of it; 0 if there are none.
    pub precision: f64,
    /// Of the pictures of it, the share answered with it; 0 if there are none.
    pub recall: f64,
    /// Area under the ROC curve of its probability, against all others; none if all or none of the pictures are of it.
    pub auc: Option<f64>,
}

/// From the probabilities of each picture's classes, `[picture, class]`, and the true ones.
pub fn scores(probabilities: &[f32], class: &[usize], names: &[String]) -> Scores {
    let (count, classes) = (class.len(), names.len());
    assert!(
        probabilities.len() == count * classes && count > 0,
        "a probability of each class for each picture"
    );
    let (mut first, mut within_5, mut log_loss) = (0, 0, 0.0);
    let mut confusion = vec![vec![0; classes]; classes];
    let mut bins = [(0usize, 0.0, 0usize); BINS];
    for (row, &class) in probabilities.chunks_exact(classes).zip(class) {
        // Of equal ones those before, so that a constant is no better than chance.
        let place = |of: usize| {
            row.iter().enumerate().filter(|&(at, &p)| p > row[of] || (p == row[of] && at < of)).count()
        };
        let answer = (0..classes).find(|&at| place(at) == 0).expect("one comes first");
        let rank = place(class);
        first += usize::from(rank == 0);
        within_5 += usize::from(rank < 5);
        log_loss -= f64::from(row[class].max(1e-30)).ln();
        confusion[class][answer] += 1;
        let bin = &mut bins[((row[answer] * BINS as f32) as usize).min(BINS - 1)];
        *bin = (bin.0 + 1, bin.1 + f64::from(row[answer]), bin.2 + usize::from(rank == 0));
    }
    let all = count as f64;
    let calibration: Vec<Bin> = bins
        .into_iter()
        .filter(|bin| bin.0 > 0)
        .map(|(pictures, confidence, right)| Bin {
            pictures,
            confidence: confidence / pictures as f64,
            accuracy: right as f64 / pictures as f64,
        })
        .collect();
    let gap = |bin: &Bin| bin.pictures as f64 / all * (bin.confidence - bin.accuracy).abs();
    let share = |part: usize, of: usize| if of > 0 { part as f64 / of as f64 } else { 0.0 };
    let of_class = |(at, name): (usize, &String)| {
        let of_it: Vec<bool> = class.iter().map(|&class| class == at).collect();
        let values: Vec<f32> = probabilities.iter().skip(at).step_by(classes).copied().collect();
        let pictures = of_it.iter().filter(|of_it| **of_it).count();
        let auc = (pictures > 0 && pictures < count).then(|| Ranked::new(&values, &of_it).scores().auc);
        let right = confusion[at][at];
        ClassScores {
            name: name.clone(),
            pictures,
            precision: share(right, confusion.iter().map(|row| row[at]).sum()),
            recall: share(right, pictures),
            auc,
        }
    };
    Scores {
        pictures: count,
        top_1: first as f64 / all,
        top_1_interval: wilson(first, count),
        top_5: within_5 as f64 / all,
        log_loss: log_loss / all,
        calibration_error: calibration.iter().map(gap).sum(),
        calibration,
        classes: names.iter().enumerate().map(of_class).collect(),
        confusion,
    }
}

/// Wilson's 95 % interval of a share.
pub fn wilson(part: usize, of: usize) -> [f64; 2] {
    let (n, p, z) = (of as f64, part as f64 / of as f64, 1.959_964);
    let middle = p + z * z / (2.0 * n);
    let reach = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    [middle - reach, middle + reach].map(|end| end / (1.0 + z * z / n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_of_a_few_pictures_are_those_counted_by_hand() {
        let names: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
        let probabilities = [
            0.7, 0.2, 0.1, // a, right
            0.6, 0.3, 0.1, // b, taken for a
            0.1, 0.85, 0.05, // b, right
            0.3, 0.3, 0.4, // c, right
        ];
        let scores = scores(&probabilities, &[0, 1, 1, 2], &names);
        let near = |x: f64, want: f64| assert!((x - want).abs() < 1e-6, "{x}, not {want}");
        near(scores.top_1, 0.75);
        near(scores.top_5, 1.0);
        let log_loss = -(0.7f64.ln() + 0.3f64.ln() + 0.85f64.ln() + 0.4f64.ln()) / 4.0;
        near(scores.log_loss, log_loss);
        assert_eq!(scores.confusion, [[1, 0, 0], [1, 1, 0], [0, 0, 1]]);
        let [a, b, _] = &scores.classes[..] else { panic!("three classes") };
        assert_eq!((a.pictures, a.precision, a.recall), (1, 0.5, 1.0));
        assert_eq!((b.precision, b.recall, b.auc), (1.0, 0.5, Some(0.875)));
        // Each in a bin of its own: .7 and 1, .6 and 0, .85 and 1, .4 and 1.
        near(scores.calibration_error, (0.3 + 0.6 + 0.15 + 0.6) / 4.0);
        let [low, high] = scores.top_1_interval;
        near(low, 0.300_641_8);
        near(high, 0.954_413_4);
    }

    #[test]
    fn a_constant_is_right_about_one_class_only() {
        let names: Vec<String> = (0..8).map(|n| n.to_string()).collect();
        let class: Vec<usize> = (0..80).map(|n| n % 8).collect();
        let scores = scores(&[0.125; 640], &class, &names);
        assert_eq!((scores.top_1, scores.top_5), (0.125, 0.625));
        assert_eq!(scores.classes[3].auc, Some(0.5));
        assert!(scores.calibration_error < 1e-6);
    }
}
