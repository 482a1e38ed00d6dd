"""What scikit-learn makes of 700 of its handwritten digits: the values that src/classify/linear/tests.rs holds `striate classify` to.

Writes tests/golden/readout.json. Needs scikit-learn; the tests do not.

    python3 scripts/golden_readout.py
"""

import json
import pathlib

import numpy as np
import sklearn
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.multiclass import OneVsRestClassifier

TRAIN, ALL = 500, 700


def fits(x, y):
    mean, deviation = x[:TRAIN].mean(0), x[:TRAIN].std(0)
    x = np.where(deviation > 0, (x - mean) / np.where(deviation > 0, deviation, 1), 0)
    for penalty in (0.1, 0.001):
        for method in ("softmax", "logistic"):
            one = LogisticRegression(C=1 / (penalty * TRAIN), tol=1e-10, max_iter=100_000)
            model = one if method == "softmax" else OneVsRestClassifier(one)
            model.fit(x[:TRAIN], y[:TRAIN])
            probability = model.predict_proba(x)
            if method == "softmax":
                weights = model.coef_
                loss = log_loss(y[:TRAIN], probability[:TRAIN])
            else:
                weights = np.concatenate([of_class.coef_ for of_class in model.estimators_])
                of_classes = [of_class.predict_proba(x[:TRAIN])[:, 1] for of_class in model.estimators_]
                loss = sum(log_loss(y[:TRAIN] == c, p) for c, p in enumerate(of_classes))
            yield {
                "method": method,
                "lambda": penalty,
                "objective": loss + penalty / 2 * (weights**2).sum(),
                "accuracy": float((probability[TRAIN:].argmax(1) == y[TRAIN:]).mean()),
                "log_loss": log_loss(y[TRAIN:], probability[TRAIN:]),
            }


def main():
    digits = load_digits()
    x, y = digits.data[:ALL], digits.target[:ALL]
    golden = {
        "made_with": f"scikit-learn {sklearn.__version__}",
        "train": TRAIN,
        "features": x.astype(int).tolist(),
        "class": y.tolist(),
        "fits": list(fits(x, y)),
    }
    out = pathlib.Path(__file__).parent.parent / "tests/golden/readout.json"
    out.write_text(json.dumps(golden, separators=(",", ":")) + "\n")
    print(*golden["fits"], sep="\n")


main()
