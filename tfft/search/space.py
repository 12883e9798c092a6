"""Search spaces of a config: read from the YAML, handed to KerasTuner, replaced by plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tfft.config import Config, Search, TuneConfig, parse, searches, section
from tfft.utils.errors import UserError, nearest

if TYPE_CHECKING:
    from keras_tuner import HyperParameters

Path = tuple[str, ...]


@dataclass(frozen=True)
class Dimension:
    """One hyperparameter.

    Attributes:
        path: path of the value in the config.
        search: set or range of values.
        when: condition: name of a choice -> labels of that choice with which this dimension is
            active.
    """

    path: Path
    search: Search
    when: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The path with dots: KerasTuner's name of the hyperparameter."""
        return ".".join(self.path)

    @property
    def labels(self) -> list[Any]:
        """The values of a choice as KerasTuner takes them.

        Numbers stay numbers; where any value is something else, all become strings.
        """
        values = self.search.values or []
        # A bool is an int in Python.
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            integers = all(isinstance(v, int) for v in values)
            return [v if integers else float(v) for v in values]
        return [_label(v) for v in values]

    def text(self) -> str:
        """Return the path, the values and the condition as one line."""
        search = self.search
        if search.search == "choice":
            values = f"one of {', '.join(map(str, self.labels))}"
        else:
            step = f" in steps of {search.step:g}" if search.step is not None else ""
            values = f"{search.search} from {search.min:g} to {search.max:g}{step}"
        conditions = [f", with {n}={' or '.join(map(str, v))}" for n, v in self.when.items()]
        return f"{self.name}: {values}{''.join(conditions)}"

    def clamp(self, value: Any) -> Any:
        """Return the valid value nearest to `value`; None where there is none."""
        if self.search.search == "choice":
            labels = self.labels
            # Labels are all strings or all numbers.
            label = _label(value) if isinstance(labels[0], str) else value
            if label in labels:
                return label
            numbers = isinstance(label, int | float) and not isinstance(label, bool | str)
            is_number = isinstance(labels[0], int | float) and numbers
            return min(labels, key=lambda v: abs(v - label)) if is_number else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        low, high, step = float(self.search.min), float(self.search.max), self.search.step
        value = min(max(float(value), low), high)
        if step is not None:
            # Steps count from the lower end.
            value = low + step * round((value - low) / step)
        return round(value) if self.search.whole else value


class Space:
    """The hyperparameters of a config, and the config without them.

    Args:
        raw: the YAML as nested mappings, with search spaces in place of values.
        where: name of the config in errors.

    Raises:
        UserError: the config has mistakes, one line for each, or holds no search space.
    """

    def __init__(self, raw: Mapping[str, Any], where: str = "config"):
        self.where = where
        self._raw = self._merge_tune_space(raw)
        self.dimensions = self._order(list(self._find_dimensions(self._raw, (), {})))
        if not self.dimensions:
            raise UserError(
                f"{where}: holds no search space; write one in place of a value, such as "
                "`learning_rate: {search: loguniform, min: 1e-5, max: 1e-3}`, or in tune.space"
            )
        self.defaults = self._active_values(lambda dimension: None)
        plain = parse(self.resolve(self.defaults), where=where)  # reports unknown keys
        self.tune = plain.tune or TuneConfig()
        halving = self.tune.oracle == "hyperband" or self.tune.halving is not None
        if halving and any(d.path == ("train", "epochs") for d in self.dimensions):
            raise UserError(
                f"{where}: train.epochs: halving decides how long a trial runs; set the maximum"
            )
        validate_every = plain.train.validate_every
        # An epoch must consist of a whole number of intervals between validations.
        if halving and (validate_every.unit != "epochs" or 1 / validate_every.value % 1):
            raise UserError(
                f"{where}: train.validate_every: halving compares trials after whole epochs; set "
                f"'1 epochs' or a fraction of it ('0.5 epochs'). Received: '{validate_every}'"
            )
        self.plain = plain

    def _merge_tune_space(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """Return a copy of the config with the entries of `tune.space` moved to their paths."""
        copy = _copy(raw)
        tune = copy.get("tune")
        entries = tune.get("space") if isinstance(tune, dict) else None
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            section, keys = copy, str(name).split(".")
            for key in keys[:-1]:
                inner = section.setdefault(key, {})
                if not isinstance(inner, dict):
                    raise UserError(
                        f"{self.where}: tune.space.{name}: {key} must be a section. "
                        f"Received: {inner!r}"
                    )
                section = inner
            if isinstance(section.get(keys[-1]), dict) and "search" in section[keys[-1]]:
                raise UserError(f"{self.where}: tune.space.{name}: has a search space already")
            section[keys[-1]] = entry
        return copy

    def _find_dimensions(
        self, node: Any, path: Path, when: Mapping[str, Any]
    ) -> Iterator[Dimension]:
        """Yield the search spaces below `node`, including those nested in options of a choice."""
        for suffix, value in searches(node).items():
            full_path = (*path, *suffix)
            name = ".".join(full_path)
            search = section(Search, value, f"{self.where}: {name}")
            dimension = Dimension(full_path, search, {**when, **search.when})
            yield dimension
            # A space within an option is active only where that option is drawn.
            for label, option in zip(dimension.labels, search.values or [], strict=True):
                yield from self._find_dimensions(option, full_path, {**when, name: [label]})

    def _order(self, dimensions: list[Dimension]) -> list[Dimension]:
        """Return the dimensions ordered so that choices precede those that depend on them.

        Raises:
            UserError: a condition names an unknown choice or label, or conditions form a cycle.
        """
        names = [d.name for d in dimensions]
        ordered: list[Dimension] = []
        while len(ordered) < len(dimensions):
            known = {d.name for d in ordered}
            # Those whose conditions are all in the list already, in the order of the config.
            ready = [d for d in dimensions if d not in ordered and set(d.when) <= known]
            if not ready:
                blocked = next(d for d in dimensions if d not in ordered)
                missing = next(n for n in blocked.when if n not in known)
                hint = (
                    nearest(missing, names)
                    if missing not in names
                    else "; the conditions form a cycle"
                )
                raise UserError(f"{self.where}: {blocked.name}: when: no choice {missing!r}{hint}")
            ordered += ready
        # Once all dimensions are placed, each condition names a known choice.
        by_name = {d.name: d for d in ordered}
        for dimension in ordered:
            for name, values in dimension.when.items():
                unknown = [v for v in values if v not in by_name[name].labels]
                if unknown:
                    options = ", ".join(map(str, by_name[name].labels))
                    raise UserError(
                        f"{self.where}: {dimension.name}: when: {name} must be one of {options}. "
                        f"Received: {unknown[0]!r}"
                    )
        return ordered

    def text(self) -> list[str]:
        """Return a line for each dimension."""
        return [dimension.text() for dimension in self.dimensions]

    def hyperparameters(self, defaults: Mapping[str, Any] | None = None) -> HyperParameters:
        """Return the space as KerasTuner's object.

        Args:
            defaults: values of the first trial by name.
        """
        from keras_tuner import HyperParameters

        hp = HyperParameters()
        self.register(hp, defaults)
        return hp

    def register(
        self, hp: HyperParameters, defaults: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Register the space in KerasTuner's object and return the active values by name."""
        values: dict[str, Any] = {}
        for dimension in self.dimensions:
            # Advised values may lie outside of the space.
            default = dimension.clamp(
                (defaults or self.defaults).get(dimension.name, dimension.search.default)
            )
            with ExitStack() as stack:
                for name, labels in dimension.when.items():
                    stack.enter_context(hp.conditional_scope(name, list(labels)))
                value = _register(hp, dimension, _first(dimension) if default is None else default)
            if _is_active(dimension, values):
                values[dimension.name] = value
        return values

    def resolve(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the config as nested mappings, with `values` in place of the search spaces."""
        resolved: dict[str, Any] = self._resolve_node(self._raw, (), values)
        return resolved

    def _resolve_node(self, node: Any, path: Path, values: Mapping[str, Any]) -> Any:
        if path == ("tune",):
            return node
        if isinstance(node, list):
            inner = [self._resolve_node(v, (*path, str(i)), values) for i, v in enumerate(node)]
            return [v for v in inner if v is not _ABSENT]
        if not isinstance(node, Mapping):
            return node
        if "search" in node:
            return self._resolve_search(node, path, values)
        inner = {k: self._resolve_node(v, (*path, str(k)), values) for k, v in node.items()}
        return {k: v for k, v in inner.items() if v is not _ABSENT}

    def _resolve_search(self, node: Any, path: Path, values: Mapping[str, Any]) -> Any:
        name, search = ".".join(path), Search(**node)
        # A path may have several dimensions with different conditions.
        active = [d for d in self.dimensions if d.path == path and _is_active(d, values)]
        dimension = next((d for d in active if d.search == search), None)
        if dimension is None or name not in values:
            return _ABSENT
        value = values[name]
        if dimension.search.search != "choice":
            return int(value) if dimension.search.whole else float(value)
        option = (dimension.search.values or [])[dimension.labels.index(value)]
        return self._resolve_node(option, path, values)

    def config(self, values: Mapping[str, Any]) -> Config:
        """Return the validated config of a trial, without the section `tune`.

        Raises:
            UserError: the values are not valid together.
        """
        raw = self.resolve(values)
        raw.pop("tune", None)
        return parse(raw, where=self.where)

    def without(self) -> dict[str, Any]:
        """Return the config without the searched values that the advisor can choose.

        Other searched values take their defaults.
        """
        advised = ("method", "optimizer", "train", "augmentation")
        # Values that are missing here stay absent, so that the defaults of the config apply.
        values = {n: v for n, v in self.defaults.items() if n.split(".")[0] not in advised}
        raw = self.resolve(values)
        raw.pop("tune", None)
        return raw

    def values_of(self, config: Config) -> dict[str, Any]:
        """Return the values of a config, clamped to this space.

        A dimension takes its default where the config has no value that it can take.
        """
        dumped = config.model_dump(mode="json")

        def value(dimension: Dimension) -> Any:
            configured = _get(dumped, dimension.path)
            return dimension.clamp(configured) if configured is not _ABSENT else None

        return self._active_values(value)

    def _active_values(self, value: Callable[[Dimension], Any]) -> dict[str, Any]:
        """Return a value for each active dimension.

        Args:
            value: dimension -> value, or None to take its default or its first value.
        """
        values: dict[str, Any] = {}
        for dimension in self.dimensions:
            if _is_active(dimension, values):
                chosen_value = value(dimension)
                default = dimension.search.default
                if chosen_value is None and default is not None:
                    chosen_value = dimension.clamp(default)
                values[dimension.name] = _first(dimension) if chosen_value is None else chosen_value
        return values


# Marks a value that is inactive or missing; None is a valid value of a config.
_ABSENT: Any = object()


def _is_active(dimension: Dimension, values: Mapping[str, Any]) -> bool:
    """Return whether a dimension is active under `values`."""
    return all(values.get(name) in labels for name, labels in dimension.when.items())


def _register(hp: HyperParameters, dimension: Dimension, default: Any) -> Any:
    search = dimension.search
    if search.search == "choice":
        return hp.Choice(dimension.name, dimension.labels, default=default)
    sampling = "log" if search.search.startswith("log") else "linear"
    low, high = float(search.min or 0), float(search.max or 0)
    if search.whole:
        step = int(search.step) if search.step is not None else None if sampling == "log" else 1
        bounds = int(low), int(high)
        return hp.Int(dimension.name, *bounds, step=step, sampling=sampling, default=int(default))
    default = float(default)
    return hp.Float(dimension.name, low, high, step=search.step, sampling=sampling, default=default)


def _first(dimension: Dimension) -> Any:
    """Return the middle of a range, or the first value of a choice."""
    search = dimension.search
    if search.search == "choice":
        return dimension.labels[0]
    low, high = float(search.min or 0), float(search.max or 0)
    # The middle on the scale of the sampling: the geometric mean for a logarithmic one.
    middle = (low * high) ** 0.5 if search.search.startswith("log") else (low + high) / 2
    return dimension.clamp(middle)


def _label(value: Any) -> str:
    """Return a string for a value of a choice; for a section, its name."""
    if isinstance(value, Mapping):
        name = value.get("name")
        return str(name) if name is not None else str(dict(value))
    return str(value)


def _get(node: Any, path: Path) -> Any:
    for key in path:
        if isinstance(node, list) and key.isdigit() and int(key) < len(node):
            node = node[int(key)]
        elif isinstance(node, Mapping) and key in node:
            node = node[key]
        else:
            return _ABSENT
    return node


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list) else value
