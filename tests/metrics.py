"""The detector test's figures against scikit-learn and the definition of the paper's rule.

    python tests/metrics.py RESULT.json VALUES.safetensors     both written by `striate evaluate`
"""

import json
import sys

import numpy
from safetensors.numpy import load_file
from sklearn.metrics import average_precision_score, roc_auc_score

TOLERANCE = 1e-6


def paper(values, labels):
    """The best of 20 equally spaced thresholds from the least value to the greatest, `value > threshold`."""
    values = values.astype(numpy.float64)
    thresholds = numpy.linspace(values.min(), values.max(), 20)
    accuracies = [((values > threshold) == labels).mean() for threshold in thresholds]
    best = int(numpy.argmax(accuracies))
    return accuracies[best], thresholds[best]


def main(result, values):
    result, tensors = json.load(open(result)), load_file(values)
    labels, rows = tensors["labels"].astype(bool), tensors["values"]
    assert rows.shape == (len(result["units"]), len(labels)), rows.shape
    assert labels.sum() == result["positives"] and (~labels).sum() == result["negatives"]
    worst = {}
    for unit, values in zip(result["units"], rows):
        accuracy, threshold = paper(values, labels)
        flipped, _ = paper(-values, labels)
        exact = max(((values > t) == labels).mean() for t in [values.min() - 1, *numpy.unique(values)])
        wanted = {
            "min": values.min(),
            "max": values.max(),
            "paper": accuracy,
            "threshold": threshold,
            "flipped": flipped,
            "exact": exact,
            "auc": roc_auc_score(labels, values),
            "average_precision": average_precision_score(labels, values),
        }
        for name, want in wanted.items():
            got = unit["paper"]["threshold"] if name == "threshold" else unit[name]
            got = got["accuracy"] if isinstance(got, dict) else got
            worst[name] = max(worst.get(name, 0), abs(got - want))
    print(f"{len(rows)} units, {len(labels)} pictures; largest differences from scikit-learn and the definitions:")
    print(", ".join(f"{name} {error:.1e}" for name, error in worst.items()))
    failed = [name for name, error in worst.items() if not error <= TOLERANCE]
    sys.exit(f"off by more than {TOLERANCE}: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
