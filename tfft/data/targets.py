"""Targets: what the target columns of a row hold, from their cells to arrays.

The target columns are the last ones of a row. A task names its kind of targets in its section
(`config.tasks.TaskSection.targets`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tfft.config import DataConfig
from tfft.config.data import check_labels, format_label, look_alike
from tfft.data.records import LABEL_SEPARATOR, BadRow, Columns, Row, with_texts
from tfft.preprocess.windows import Window
from tfft.utils import console
from tfft.utils.errors import UserError, nearest
from tfft.utils.reading import expanded, is_file, read_text

if TYPE_CHECKING:  # `prepared` imports this module
    from tfft.data.prepared import Prepared, Writer

MISSING_VALUES = ("nan", "null", "n/a", "<na>", "nat")  # how programs write a missing value
QUANTILE_GROUPS = 10  # groups of numbers in which a split is stratified
# `float` also takes underscores, the digits of other scripts, nan and inf.
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", re.IGNORECASE)
Locate = Callable[[str], str]  # cell of a target column -> place of the first row with it


class Targets(Protocol):
    """A kind of targets.

    Attributes:
        width: number of target columns.
        of_windows: whether targets are places in a text, which is then divided into windows.
        files: files of a prepared set that `write` and `write_windows` fill.
        settings: plain data that the stored targets depend on, for cache keys.
        noun: names several outputs of the model, such as `classes`.
    """

    width: int
    of_windows: bool
    files: tuple[str, ...]
    settings: list[Any]
    noun: str

    def read(self, row: Row, columns: Columns) -> Row | BadRow:
        """Return a row of a source with its text and the targets as `write` takes them."""

    def labels(self, value: Any) -> Sequence[str]:
        """Return the parts of a cell that a row is located by."""

    def problem(self, value: str) -> str | None:
        """Return what is wrong with the cell of a target column; None if nothing is."""

    def write(self, writer: "Writer", rows: Sequence[Row]) -> None:
        """Append the targets of some rows to a prepared set."""

    def write_windows(self, writer: "Writer", row: Row, windows: Sequence[Window]) -> None:
        """Append what the windows of a row have to do with its targets; only if `of_windows`."""

    def lost(self, split: Any) -> str | None:
        """Return what of the targets of a `Dataset` no window holds; only if `of_windows`."""

    def names(
        self,
        config: DataConfig,
        stored: Sequence[str] | None,
        prepared: "Prepared",
        locate: Locate,
    ) -> tuple[str, ...]:
        """Return the names of the model's outputs.

        Args:
            config: section `data`.
            stored: names in a checkpoint or run; None without one.
            prepared: the training rows.
            locate: cell of a target column -> place of its first row.

        Raises:
            UserError: the names do not fit the config.
        """

    def array(
        self, prepared: "Prepared", names: Sequence[str], config: DataConfig, locate: Locate
    ) -> Any:
        """Return the targets of a prepared set: an array [rows, ...], or `Ragged`.

        Raises:
            UserError: a target is none of `names`.
        """

    def check(self, names: Sequence[str], locate: Locate) -> None:
        """Check the names of all outputs; log what is suspicious.

        Raises:
            UserError: there are too few.
        """

    def groups(self, targets: Any) -> np.ndarray:
        """Return an integer for each row, [N]: splits hold out the same share of each."""

    def units(self, prepared: Any) -> np.ndarray | None:
        """Return an integer for each row, [rows]: those with equal ones are held out together.

        None: each row is held out by itself.
        """

    def text(self, target: Any, names: Sequence[str]) -> str:
        """Return the target of one row as text."""

    def summary(self, targets: Any, names: Sequence[str]) -> dict[str, int | float]:
        """Return statistics of a split's targets by name."""


@dataclass(frozen=True)
class ClassTargets:
    """Exactly one class in each row: class ids, int32 [N]."""

    width = 1
    of_windows = False
    files = ("labels", "label_ends")
    noun = "classes"

    @property
    def settings(self) -> list[Any]:
        """Plain data that the stored targets depend on."""
        return ["classes"]

    def read(self, row: Row, columns: Columns) -> Row | BadRow:
        """Return the row with its cells as texts; a list of labels is joined."""
        return with_texts(row, columns)

    def labels(self, value: str) -> list[str]:
        """Return the labels in a cell."""
        return [value]

    def problem(self, value: str) -> str | None:
        """Return what is wrong with a cell."""
        if LABEL_SEPARATOR in value:
            return "holds several labels; one is expected"
        return None if value.strip() else "is empty; fill it or drop the row"

    def write(self, writer: "Writer", rows: Sequence[Row]) -> None:
        """Append ids of the labels in order of appearance, and their end in each row."""
        ids = [[writer.name_id(n) for n in self.labels(row.values[-1])] for row in rows]
        writer.put_ragged("label", [np.array(row_ids, np.int32) for row_ids in ids])

    def names(
        self,
        config: DataConfig,
        stored: Sequence[str] | None,
        prepared: "Prepared",
        locate: Locate,
    ) -> tuple[str, ...]:
        """Return the stored or configured class names, or those of the training rows."""
        return tuple(stored or configured_labels(config) or prepared.names)

    def array(
        self, prepared: "Prepared", names: Sequence[str], config: DataConfig, locate: Locate
    ) -> np.ndarray:
        """Return class ids, int32 [rows].

        Raises:
            UserError: a label is not one of `names`, or two labels look the same.
        """
        return self._ids(prepared, names, config, locate)[prepared.labels]

    def _ids(
        self, prepared: "Prepared", names: Sequence[str], config: DataConfig, locate: Locate
    ) -> np.ndarray:
        """Return the class id of each of the prepared names, int32."""
        check_distinct(prepared.names, locate)
        ids = {name: i for i, name in enumerate(names)}
        # With `data.labels`, a number that is not itself a name is an index into the names.
        has_labels = config.labels is not None
        indices = {str(i): i for i in range(len(names))} if has_labels else {}
        id_of_name = np.array([ids.get(n, indices.get(n, -1)) for n in prepared.names], np.int32)
        if (id_of_name < 0).any():
            unknown = prepared.names[int(np.flatnonzero(id_of_name < 0)[0])]
            raise UserError(
                f"{locate(unknown)}: label {unknown!r} is not a class{nearest(unknown, names)}"
            )
        return id_of_name

    def check(self, names: Sequence[str], locate: Locate) -> None:
        """Check that there are two classes; log names that look like missing values.

        Raises:
            UserError: there are fewer.
        """
        if len(names) < self._fewest:
            raise UserError(f"data.label: at least two classes are needed; found {list(names)}")
        for name in names:
            if name.strip().lower() in MISSING_VALUES:
                console.log(f"{locate(name)}: label {name!r} is a class; is it a missing value?")

    _fewest = 2

    def groups(self, targets: np.ndarray) -> np.ndarray:
        """Return the class ids."""
        return targets

    def units(self, prepared: Any) -> None:
        """Return None: each row is held out by itself."""
        return None

    def text(self, target: np.ndarray, names: Sequence[str]) -> str:
        """Return the name of the class."""
        return names[target]

    def summary(self, targets: np.ndarray, names: Sequence[str]) -> dict[str, int | float]:
        """Return the number of rows of each class."""
        counts = np.bincount(targets, minlength=len(names))
        return dict(zip(names, map(int, counts), strict=True))


@dataclass(frozen=True)
class LabelTargets(ClassTargets):
    """Any number of labels in each row: 0 or 1, float32 [N, C].

    Attributes:
        separator: separates the labels in a cell.
    """

    separator: str = "|"
    noun = "labels (multi-label)"
    _fewest = 1  # a multi-label task may have a single label

    @property
    def settings(self) -> list[Any]:
        """Plain data that the stored targets depend on."""
        return ["labels", self.separator]

    def labels(self, value: str) -> list[str]:
        """Return the labels in a cell."""
        # A source with a list of labels joins them by LABEL_SEPARATOR.
        parts = value.replace(LABEL_SEPARATOR, self.separator).split(self.separator)
        return list(dict.fromkeys(label.strip() for label in parts if label.strip()))

    def problem(self, value: str) -> str | None:
        """Return None: a row may have any number of labels."""
        return None

    def array(
        self, prepared: "Prepared", names: Sequence[str], config: DataConfig, locate: Locate
    ) -> np.ndarray:
        """Return 0 or 1 for each row and label, float32 [rows, C].

        Raises:
            UserError: a label is not one of `names`, or two labels look the same.
        """
        id_of_name = self._ids(prepared, names, config, locate)
        targets = np.zeros((prepared.rows, len(names)), np.float32)
        # One entry for each pair of a row and one of its labels.
        targets[prepared.label_rows, id_of_name[prepared.labels]] = 1
        return targets

    def groups(self, targets: np.ndarray) -> np.ndarray:
        """Return the rarest label of each row, -1 for a row without labels."""
        counts = targets.sum(axis=0)
        class_sizes = np.where(targets > 0, counts, np.inf)
        # Without labels, `argmin` over infinities would be class 0.
        return np.where(targets.any(axis=1), class_sizes.argmin(axis=1), -1)

    def text(self, target: np.ndarray, names: Sequence[str]) -> str:
        """Return the labels joined by |."""
        return "|".join(names[i] for i in np.flatnonzero(target))

    def summary(self, targets: np.ndarray, names: Sequence[str]) -> dict[str, int | float]:
        """Return the number of rows of each label."""
        return dict(zip(names, map(int, targets.sum(axis=0)), strict=True))


@dataclass(frozen=True)
class NumberTargets:
    """A number in each of the target columns: float32 [N, K].

    Attributes:
        width: number of target columns, K.
    """

    width: int = 1
    of_windows = False
    files = ("numbers",)
    noun = "numbers"

    @property
    def settings(self) -> list[Any]:
        """Plain data that the stored targets depend on."""
        return ["numbers", self.width]

    def read(self, row: Row, columns: Columns) -> Row | BadRow:
        """Return the row with its cells as texts."""
        return with_texts(row, columns)

    def labels(self, value: str) -> list[str]:
        """Return the cell."""
        return [value]

    def problem(self, value: str) -> str | None:
        """Return what is wrong with a cell."""
        if not value.strip():
            return "is empty; fill it or drop the row"
        number = _NUMBER.fullmatch(value.strip())
        # The bound keeps float32 and the square of a target finite.
        if number is not None and abs(float(value)) < 1e18:
            return None
        has_comma = "," in value and _NUMBER.fullmatch(value.strip().replace(",", "."))
        hint = "; write decimals with a point and no separators" if has_comma else ""
        return f"must be a number below 1e18{hint}. Received: {value[:60]!r}"

    def write(self, writer: "Writer", rows: Sequence[Row]) -> None:
        """Append the numbers of some rows."""
        numbers = [[float(value) for value in row.values[-self.width :]] for row in rows]
        writer.put("numbers", np.array(numbers, np.float32))

    def names(
        self,
        config: DataConfig,
        stored: Sequence[str] | None,
        prepared: "Prepared",
        locate: Locate,
    ) -> tuple[str, ...]:
        """Return the names of the target columns.

        Raises:
            UserError: a checkpoint has another number of outputs.
        """
        if stored is not None and len(stored) != self.width:
            raise UserError(
                f"data.label: the checkpoint's head gives {len(stored)} numbers. Received: "
                f"{self.width} columns"
            )
        return tuple(map(str, config.label_columns))

    def array(
        self, prepared: "Prepared", names: Sequence[str], config: DataConfig, locate: Locate
    ) -> np.ndarray:
        """Return the numbers, float32 [rows, K]."""
        return np.array(prepared.map("numbers", np.float32)).reshape(-1, self.width)

    def check(self, names: Sequence[str], locate: Locate) -> None:
        """Do nothing: every column has a name."""

    def groups(self, targets: np.ndarray) -> np.ndarray:
        """Return the quantile group of each row, by the sum of its standardised targets."""
        deviation = np.maximum(targets.std(axis=0, dtype=np.float64), 1e-12)
        score = ((targets - targets.mean(axis=0, dtype=np.float64)) / deviation).sum(axis=1)
        # No more groups than a tenth of the rows, so that each can hold rows out.
        count = max(1, min(QUANTILE_GROUPS, len(targets) // 10))
        limits = np.quantile(score, np.arange(1, count) / count)
        return np.searchsorted(limits, score, side="right")

    def units(self, prepared: Any) -> None:
        """Return None: each row is held out by itself."""
        return None

    def text(self, target: np.ndarray, names: Sequence[str]) -> str:
        """Return the numbers of a row, separated by commas."""
        return ", ".join(f"{number:g}" for number in target)

    def summary(self, targets: np.ndarray, names: Sequence[str]) -> dict[str, int | float]:
        """Return mean, standard deviation, minimum, median and maximum of each column."""
        statistics: Mapping[str, Callable[..., Any]] = {
            "mean": np.mean,
            "standard deviation": np.std,
            "minimum": np.min,
            "median": np.median,
            "maximum": np.max,
        }
        return {
            f"{name}: {statistic}": float(compute(targets[:, index].astype(np.float64)))
            for index, name in enumerate(names)
            for statistic, compute in statistics.items()
        }


CLASS = ClassTargets()


def check_distinct(names: Sequence[str], locate: Locate) -> None:
    """Refuse labels that look the same but differ.

    Raises:
        UserError: two labels differ only in spaces or in Unicode normalization.
    """
    if (pair := look_alike(names)) is not None:
        first, second = map(locate, pair)
        raise UserError(
            f"{second}: label {format_label(pair[1])} differs from {format_label(pair[0])} "
            f"({first}) in spaces or Unicode normalization (NFC, NFD) only; write both the same"
        )


def configured_labels(config: DataConfig) -> list[str] | None:
    """Return the names in `data.labels` or its file; None if the config sets none.

    Raises:
        UserError: the file does not exist, or its names are not two different ones at least.
    """
    if not isinstance(config.labels, str):
        return config.labels
    path = expanded(config.labels)
    if not is_file(path):
        raise UserError(f"data.labels: no such file: {path}")
    names = [name.strip() for name in read_text(path).splitlines() if name.strip()]
    try:
        check_labels(names)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    return names
