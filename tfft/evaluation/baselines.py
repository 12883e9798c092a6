"""Baselines that a fine-tuned model should beat: a constant answer, and a linear model.

scikit-learn is an optional dependency; without it a `UserError` says how to install it.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from tfft.data import Dataset
from tfft.spec import PerRow
from tfft.utils import console
from tfft.utils.errors import UserError, require
from tfft.utils.ragged import Ragged

MAX_ROWS = 50_000  # training rows of a baseline at most
# Not 0: the log loss of a row of such a class would be infinite.
_MIN_PROBABILITY = float(np.exp(-30.0))  # probability of a class without training rows


class LogitBaselines(Protocol):
    """A task with a constant answer and a simple model as baselines.

    Attributes:
        constant: name of the constant answer.
        features: features of the simple model, a key of `FEATURES`.
    """

    constant: str
    features: str

    def constant_logits(self, targets: PerRow, classes: int) -> np.ndarray:
        """Return the logits of the best answer that does not look at a row, [C].

        They are logits without fitted values, like those of `linear_logits`.
        """

    def linear_logits(
        self, features: Any, targets: PerRow, new_features: Any, classes: int
    ) -> PerRow:
        """Fit a simple model on features of rows, and return its logits of new rows, [N, C].

        Raises:
            UserError: scikit-learn is not installed.
        """


def constant_and_linear(
    task: LogitBaselines, train: Dataset, split: Dataset, classes: int
) -> dict[str, PerRow]:
    """Return the logits of a constant answer and of a simple model, by the baseline's name.

    Args:
        task: the task of the run.
        train: rows to learn from.
        split: rows to predict.
        classes: number of logits per row.
    """
    result = {task.constant: split.constant(task.constant_logits(train.targets, classes))}
    name, positions = task.features, _positions(train)
    try:
        train_features, split_features = FEATURES[name](train, positions, split)
        targets = train.targets[positions]
        result[name] = task.linear_logits(train_features, targets, split_features, classes)
    except UserError as error:
        console.log(f"no {name} baseline: {error}")
    return result


def logistic(features: Any, ids: np.ndarray, new_features: Any, classes: int) -> np.ndarray:
    """Return probabilities of logistic regression, with scikit-learn's defaults, [N, C].

    Args:
        features: of the rows to learn from, [M, D], dense or sparse.
        ids: their class ids, [M].
        new_features: of the rows to predict, [N, D].
        classes: number of classes, C.
    """
    model = require("sklearn.linear_model", "baselines").LogisticRegression(max_iter=1000)
    model.fit(features, ids)
    probabilities = np.zeros((new_features.shape[0], classes))
    # The columns of scikit-learn are the classes that it saw, in order.
    probabilities[:, np.unique(ids)] = model.predict_proba(new_features)
    return probabilities.clip(_MIN_PROBABILITY)


def logistic_by_label(features: Any, targets: np.ndarray, new_features: Any) -> np.ndarray:
    """Return probabilities of one logistic regression for each label, [N, C].

    A label that all training rows have, or none, keeps its frequency: there is nothing to fit.

    Args:
        features: of the rows to learn from, [M, D].
        targets: 0 or 1, [M, C].
        new_features: of the rows to predict, [N, D].
    """
    linear_model = require("sklearn.linear_model", "baselines")
    rows = new_features.shape[0]
    probabilities = np.tile(targets.mean(axis=0, dtype=np.float64), (rows, 1))
    for index in range(targets.shape[1]):
        if 0 < probabilities[0, index] < 1:
            model = linear_model.LogisticRegression(max_iter=1000)
            model.fit(features, targets[:, index])
            probabilities[:, index] = model.predict_proba(new_features)[:, 1]
    return probabilities


def ridge(features: Any, targets: np.ndarray, new_features: Any) -> np.ndarray:
    """Return numbers predicted by ridge regression, with scikit-learn's defaults, [N, K].

    Args:
        features: of the rows to learn from, [M, D].
        targets: their numbers, [M, K].
        new_features: of the rows to predict, [N, D].
    """
    model = require("sklearn.linear_model", "baselines").Ridge()
    model.fit(features, targets)
    return np.asarray(model.predict(new_features)).reshape(-1, targets.shape[1])


def _positions(train: Dataset) -> np.ndarray:
    """Return the positions of the training rows that baselines learn from."""
    positions = np.arange(len(train))
    if len(positions) <= MAX_ROWS:
        return positions
    # A fixed seed: the baseline does not change with the seed of the run.
    return np.sort(np.random.default_rng(0).choice(positions, MAX_ROWS, replace=False))


def _tfidf(train: Dataset, positions: np.ndarray, split: Dataset) -> tuple[Any, Any]:
    """Return TF-IDF features of the training rows at `positions` and of the split."""
    vectorizer = require("sklearn.feature_extraction.text", "baselines").TfidfVectorizer()
    # A row may have two texts; the bag of words of both is one.
    train_features = vectorizer.fit_transform(" ".join(train.texts(int(i))) for i in positions)
    return train_features, vectorizer.transform(" ".join(split.texts(i)) for i in range(len(split)))


def _words(train: Dataset, positions: np.ndarray, split: Dataset) -> tuple[Ragged, Ragged]:
    """Return the words of the training rows at `positions` and of the split."""
    train_words = [np.array(train.words(int(p)), object) for p in positions]
    split_words = [np.array(split.words(p), object) for p in range(len(split))]
    return Ragged.from_rows(train_words, object), Ragged.from_rows(split_words, object)


def _tiny(train: Dataset, positions: np.ndarray, split: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return images at 8 x 8 pixels, 0 to 1 (Torralba et al. 2008, "80 million tiny images")."""
    train_features, split_features = (
        s.prepared.tiny[s.rows] / 255 for s in (train.take(positions), split)
    )
    return train_features, split_features


# Name of a baseline -> its features: (training rows, positions in them, split) -> of both.
FEATURES: Mapping[str, Callable[[Dataset, np.ndarray, Dataset], tuple[Any, Any]]] = {
    "tfidf": _tfidf,
    "tiny": _tiny,
    "dictionary": _words,
}
