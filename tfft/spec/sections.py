"""What a report shows of an evaluation: sections that it renders without knowing the task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Table:
    """A table of a report.

    Attributes:
        title: its heading.
        header: names of the columns; the first column names the rows.
        rows: the cells; a number is right-aligned.
        order: indices of the rows, the most noteworthy first; the model card shows the first ones.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]
    order: Sequence[int]


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix.

    Attributes:
        title: its heading.
        names: names of the classes shown.
        counts: true classes down, predicted ones across, int [c, c].
        totals: rows of each true class, those predicted as a class not shown included, int [c].
    """

    title: str
    names: Sequence[str]
    counts: "np.ndarray"
    totals: "np.ndarray"


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram.

    Attributes:
        title: its heading.
        bins: `count`, `confidence` and `accuracy` in bins of confidence.
    """

    title: str
    bins: Mapping[str, "np.ndarray"]


@dataclass(frozen=True)
class Scatter:
    """Predicted against true numbers.

    Attributes:
        title: its heading.
        true: [N].
        predicted: [N].
    """

    title: str
    true: "np.ndarray"
    predicted: "np.ndarray"


Section = Table | Matrix | Reliability | Scatter


@dataclass(frozen=True)
class Details:
    """Evaluation results of a split beyond its metrics; N rows.

    Attributes:
        sections: what a report shows, in order.
        losses: loss of each row, [N].
        wrong: whether the prediction of a row is wrong, bool [N].
        describe: row -> its target and prediction as named cells, such as `label`, `predicted` and
            `confidence`; with images `about`, the class that the report explains; and perhaps
            `text`, what the report shows of the row in place of its beginning.
    """

    sections: Sequence[Section]
    losses: "np.ndarray"
    wrong: "np.ndarray"
    describe: Callable[[int], dict[str, Any]]
