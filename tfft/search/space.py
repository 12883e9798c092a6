"""Search spaces of a config: found in the YAML, handed to KerasTuner, put back as plain values."""

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
        path: of the value in the config.
        search: what it is drawn from.
        when: name of a choice above it -> the labels with which this one counts.
    """

    path: Path
    search: Search
    when: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The path with dots, as KerasTuner knows it."""
        return ".".join(self.path)

    @property
    def labels(self) -> list[Any]:
        """The values of a choice as KerasTuner takes them: numbers, or words of their own."""
        values = self.search.values or []
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            whole = all(isinstance(v, int) for v in values)
            return [v if whole else float(v) for v in values]
        return [_label(v) for v in values]

    def text(self) -> str:
        """Its path, its values and those of a choice with which it counts."""
        search = self.search
        if search.search == "choice":
            values = f"one of {', '.join(map(str, self.labels))}"
        else:
            step = f" in steps of {search.step:g}" if search.step is not None else ""
            values = f"{search.search} from {search.min:g} to {search.max:g}{step}"
        counts = [f", with {n}={' or '.join(map(str, v))}" for n, v in self.when.items()]
        return f"{self.name}: {values}{''.join(counts)}"

    def clamp(self, value: Any) -> Any:
        """The nearest that this dimension can take; None where there is none."""
        if self.search.search == "choice":
            labels = self.labels
            label = _label(value) if isinstance(labels[0], str) else value
            if label in labels:
                return label
            numbers = isinstance(label, int | float) and not isinstance(label, bool | str)
            close = isinstance(labels[0], int | float) and numbers
            return min(labels, key=lambda v: abs(v - label)) if close else None
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        low, high, step = float(self.search.min), float(self.search.max), self.search.step
        value = min(max(float(value), low), high)
        if step is not None:
            value = low + step * round((value - low) / step)
        return round(value) if self.search.whole else value


class Space:
    """The hyperparameters of a config and the config without them.

    Args:
        raw: the YAML as nested mappings, with search spaces in place of values.
        where: names it in errors.

    Raises:
        UserError: with one line for each mistake; or nothing is searched.
    """

    def __init__(self, raw: Mapping[str, Any], where: str = "config"):
        self.where = where
        self._raw = self._countsspace(raw)
        self.dimensions = self._in_order(list(self._found(self._raw, (), {})))
        if not self.dimensions:
            raise UserError(
                f"{where}: holds no search space; write one in place of a value, as "
                "`learning_rate: {search: loguniform, min: 1e-5, max: 1e-3}`, or in tune.space"
            )
        self.defaults = self._active(lambda one: None)
        plain = parse(self.resolve(self.defaults), where=where)  # unknown keys show here
        self.tune = plain.tune or TuneConfig()
        halved = self.tune.oracle == "hyperband" or self.tune.halving is not None
        if halved and any(d.path == ("train", "epochs") for d in self.dimensions):
            raise UserError(
                f"{where}: train.epochs: halving decides how long a trial runs; give the most"
            )
        every = plain.train.validate_every
        if halved and (every.unit != "epochs" or 1 / every.value % 1):
            raise UserError(
                f"{where}: train.validate_every: halving compares trials after whole epochs; give "
                f"'1 epochs' or a part of it ('0.5 epochs'); received '{every}'"
            )
        self.plain = plain

    def _countsspace(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of `tune.space` at the places that they name."""
        copy = _copied(raw)
        tune = copy.get("tune")
        entries = tune.get("space") if isinstance(tune, dict) else None
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            at, keys = copy, str(name).split(".")
            for key in keys[:-1]:
                inner = at.setdefault(key, {})
                if not isinstance(inner, dict):
                    raise UserError(f"{self.where}: tune.space.{name}: {key} holds {inner!r}")
                at = inner
            if isinstance(at.get(keys[-1]), dict) and "search" in at[keys[-1]]:
                raise UserError(f"{self.where}: tune.space.{name}: has a search space already")
            at[keys[-1]] = entry
        return copy

    def _found(self, node: Any, path: Path, when: Mapping[str, Any]) -> Iterator[Dimension]:
        for at, value in searches(node).items():
            place = (*path, *at)
            name = ".".join(place)
            search = section(Search, value, f"{self.where}: {name}")
            one = Dimension(place, search, {**when, **search.when})
            yield one
            for label, option in zip(one.labels, search.values or [], strict=True):
                yield from self._found(option, place, {**when, name: [label]})

    def _in_order(self, found: list[Dimension]) -> list[Dimension]:
        """Choices before those that depend on them."""
        names = [d.name for d in found]
        ordered: list[Dimension] = []
        while len(ordered) < len(found):
            known = {d.name for d in ordered}
            ready = [d for d in found if d not in ordered and set(d.when) <= known]
            if not ready:
                stuck = next(d for d in found if d not in ordered)
                other = next(n for n in stuck.when if n not in known)
                hint = nearest(other, names) if other not in names else "; they wait for each other"
                raise UserError(f"{self.where}: {stuck.name}: when: no choice {other!r}{hint}")
            ordered += ready
        by_name = {d.name: d for d in ordered}
        for one in ordered:
            for name, values in one.when.items():
                strange = [v for v in values if v not in by_name[name].labels]
                if strange:
                    options = ", ".join(map(str, by_name[name].labels))
                    raise UserError(
                        f"{self.where}: {one.name}: when: {name} has {options}; "
                        f"received {strange[0]!r}"
                    )
        return ordered

    def text(self) -> list[str]:
        """A line for each dimension."""
        return [one.text() for one in self.dimensions]

    def hyperparameters(self, defaults: Mapping[str, Any] | None = None) -> HyperParameters:
        """The space as KerasTuner's object.

        Args:
            defaults: what the first trial takes, by name.
        """
        from keras_tuner import HyperParameters

        hp = HyperParameters()
        self.ask(hp, defaults)
        return hp

    def ask(self, hp: HyperParameters, defaults: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Register the space in KerasTuner's object; its values for what counts with them."""
        found: dict[str, Any] = {}
        for one in self.dimensions:
            default = one.clamp((defaults or self.defaults).get(one.name, one.search.default))
            with ExitStack() as stack:
                for name, values in one.when.items():
                    stack.enter_context(hp.conditional_scope(name, list(values)))
                value = _register(hp, one, _first(one) if default is None else default)
            if _counts(one, found):
                found[one.name] = value
        return found

    def resolve(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The config, as nested mappings, with plain values where there were spaces."""
        found: dict[str, Any] = self._plain(self._raw, (), values)
        return found

    def _plain(self, node: Any, path: Path, values: Mapping[str, Any]) -> Any:
        if path == ("tune",):
            return node
        if isinstance(node, list):
            inner = [self._plain(v, (*path, str(i)), values) for i, v in enumerate(node)]
            return [v for v in inner if v is not _ABSENT]
        if not isinstance(node, Mapping):
            return node
        if "search" in node:
            return self._value(node, path, values)
        inner = {k: self._plain(v, (*path, str(k)), values) for k, v in node.items()}
        return {k: v for k, v in inner.items() if v is not _ABSENT}

    def _value(self, node: Any, path: Path, values: Mapping[str, Any]) -> Any:
        name, search = ".".join(path), Search(**node)
        counting = [d for d in self.dimensions if d.path == path and _counts(d, values)]
        one = next((d for d in counting if d.search == search), None)
        if one is None or name not in values:
            return _ABSENT
        value = values[name]
        if one.search.search != "choice":
            return int(value) if one.search.whole else float(value)
        option = (one.search.values or [])[one.labels.index(value)]
        return self._plain(option, path, values)

    def config(self, values: Mapping[str, Any]) -> Config:
        """The config of a trial, validated; `tune` is gone from it.

        Raises:
            UserError: the values do not go together.
        """
        raw = self.resolve(values)
        raw.pop("tune", None)
        return parse(raw, where=self.where)

    def without(self) -> dict[str, Any]:
        """The config with nothing in the place of what is searched and can be advised on."""
        advised = ("method", "optimizer", "train", "augmentation")
        values = {n: v for n, v in self.defaults.items() if n.split(".")[0] not in advised}
        raw = self.resolve(values)
        raw.pop("tune", None)
        return raw

    def values_of(self, config: Config) -> dict[str, Any]:
        """A config's values as this space can take them; its own defaults where it cannot."""
        dumped = config.model_dump(mode="json")

        def value(one: Dimension) -> Any:
            given = _at(dumped, one.path)
            return one.clamp(given) if given is not _ABSENT else None

        return self._active(value)

    def _active(self, value: Callable[[Dimension], Any]) -> dict[str, Any]:
        """A value for each dimension that counts with those above it; where there is none, its
        default or its first."""
        found: dict[str, Any] = {}
        for one in self.dimensions:
            if _counts(one, found):
                own = value(one)
                default = one.search.default
                if own is None and default is not None:
                    own = one.clamp(default)
                found[one.name] = _first(one) if own is None else own
        return found


_ABSENT: Any = object()


def _counts(one: Dimension, values: Mapping[str, Any]) -> bool:
    """Whether a dimension counts where these were chosen."""
    return all(values.get(name) in labels for name, labels in one.when.items())


def _register(hp: HyperParameters, one: Dimension, default: Any) -> Any:
    search = one.search
    if search.search == "choice":
        return hp.Choice(one.name, one.labels, default=default)
    sampling = "log" if search.search.startswith("log") else "linear"
    low, high = float(search.min or 0), float(search.max or 0)
    if search.whole:
        step = int(search.step) if search.step is not None else None if sampling == "log" else 1
        ends = int(low), int(high)
        return hp.Int(one.name, *ends, step=step, sampling=sampling, default=int(default))
    default = float(default)
    return hp.Float(one.name, low, high, step=search.step, sampling=sampling, default=default)


def _first(one: Dimension) -> Any:
    """The middle of a range, the first of a choice."""
    search = one.search
    if search.search == "choice":
        return one.labels[0]
    low, high = float(search.min or 0), float(search.max or 0)
    middle = (low * high) ** 0.5 if search.search.startswith("log") else (low + high) / 2
    return one.clamp(middle)


def _label(value: Any) -> str:
    """A word for a value of a choice; of a section its name."""
    if isinstance(value, Mapping):
        name = value.get("name")
        return str(name) if name is not None else str(dict(value))
    return str(value)


def _at(raw: Any, path: Path) -> Any:
    for key in path:
        if isinstance(raw, list) and key.isdigit() and int(key) < len(raw):
            raw = raw[int(key)]
        elif isinstance(raw, Mapping) and key in raw:
            raw = raw[key]
        else:
            return _ABSENT
    return raw


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copied(v) for k, v in value.items()}
    return [_copied(v) for v in value] if isinstance(value, list) else value
