"""Rules over variables -> a total, audited decision of what moves.

The first rule that matches a variable decides it. A rule that matches no variable is an error
(it is a typo, or the model is not what its author thought), and so is a variable that no rule
covers. The decision is made once, after every layer exists, and set in one pass from parents to
leaves to variables, because in Keras a layer's `trainable` overwrites that of all below it.

A stage in which nothing moves is frozen whole: its layers run as in inference, so its dropout
is off too, and what it puts out does not change from step to step.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras

from tfft.spec import Mask, MaskEntry, Phase, Rule, Stage
from tfft.utils.errors import UserError, nearest


def apply(model: keras.Model, stages: Sequence[Stage], rules: Sequence[Rule]) -> Mask:
    """Decide every variable of `model`, set `trainable` on layers and variables, and report.

    Raises:
        UserError: a rule matches nothing, a variable is covered by none, or nothing would move.
    """
    mask = decide(variables(model), stages, rules, statistics(model))
    set_trainable(model, mask)
    return mask


def variables(model: keras.Model) -> list[tuple[str, int]]:
    """Path and size of every variable, in the model's order."""
    return [(v.path, _size(v)) for v in model.weights]


def statistics(model: keras.Model) -> frozenset[str]:
    """Paths of the variables that no gradient ever moves: BatchNorm's statistics, and codes."""
    layers = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Layer)]
    return frozenset(v.path for layer in layers for v in layer._non_trainable_variables)


def set_trainable(model: keras.Model, mask: Mask) -> None:
    """Let `model` be as a mask says: parents, leaves and variables in one pass."""
    moving = {entry.path for entry in mask.entries if entry.trainable}
    model.trainable = True
    _set_layers(model, moving)
    for variable in model.weights:
        if variable.path not in moving:
            variable.trainable = False


def layer_decay(mask: Mask, stages: Sequence[Stage], decay: float) -> Mask:
    """Lower rates for lower stages: `decay` to the power of the distance from the head.

    The head and what stands between it and the top block keep their rate; the top block has
    `decay`, the embeddings decay ** (blocks + 1). Sun et al. 2019, "How to Fine-Tune BERT for
    Text Classification?", section 5.3.4; counted as in Bao et al. 2022 (BEiT).
    """
    at = blocks(stages)
    depth = {stage.name: max(0, at[-1] + 1 - i) for i, stage in enumerate(stages)}
    entries = tuple(
        replace(entry, learning_rate=entry.learning_rate * decay ** depth[entry.stage])
        for entry in mask.entries
    )
    return Mask(entries, _rates(entries))


def union(masks: Sequence[Mask]) -> Mask:
    """What moves in any of the masks, at its last rate."""
    entries = []
    for found in zip(*(mask.entries for mask in masks), strict=True):
        moving = [entry for entry in found if entry.trainable]
        entries.append((moving or found)[-1])
    return Mask(tuple(entries), _rates(entries))


def decide(
    variables: Sequence[tuple[str, int]],
    stages: Sequence[Stage],
    rules: Sequence[Rule],
    fixed: frozenset[str] = frozenset(),
) -> Mask:
    """The same decision for (path, size) pairs, setting nothing; what is `fixed` never moves."""
    paths = [path for path, _ in variables]
    stage_of = _assign_stages(paths, stages)
    matched = {id(rule): _matches(rule, paths, stages) for rule in rules}
    owner = {p: next((r for r in rules if p in matched[id(r)]), None) for p in paths}
    _audit(rules, matched, owner, stages)
    entries = tuple(
        MaskEntry(
            path,
            stage_of[path],
            size,
            rule.trainable and path not in fixed,
            rule.learning_rate,
            rule,
        )
        for path, size in variables
        if (rule := owner[path]) is not None
    )
    if not any(entry.trainable for entry in entries):
        raise UserError("mask: nothing would move: every variable is frozen")
    return Mask(entries, _rates(entries))


def _rates(entries: Sequence[MaskEntry]) -> dict[str, float]:
    return {e.path: e.learning_rate for e in entries if e.trainable and e.learning_rate != 1}


def table(mask: Mask, starts: Mapping[str, int] | None = None) -> str:
    """The mask as text: a line for each stage, then the totals.

    `starts` maps a variable's path to the step at which it begins to move, where that is not the
    first; the stage's line shows the first of them.
    """
    starts = starts or {}
    rows = [("stage", "variables", "parameters", "trainable", "lr factor")]
    for stage in dict.fromkeys(entry.stage for entry in mask.entries):
        entries = [e for e in mask.entries if e.stage == stage]
        moving = [e for e in entries if e.trainable]
        rates = sorted({e.learning_rate for e in moving})
        shown = ", ".join(f"{rate:.3g}" for rate in rates) or "frozen"
        if start := min((starts.get(e.path, 0) for e in moving), default=0):
            shown += f" from step {start:,}"
        rows.append(
            (
                stage,
                str(len(entries)),
                f"{sum(e.size for e in entries):,}",
                f"{sum(e.size for e in moving):,}",
                shown,
            )
        )
    total, moving = parameters(mask)
    rows.append(("total", str(len(mask.entries)), f"{total:,}", f"{moving:,}", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, f"{moving:,} of {total:,} parameters move ({moving / total:.2%})"])


def head_and(stages: Sequence[Stage], match: str, method: str) -> tuple[Phase, ...]:
    """One phase: the head moves and what `match` finds; the rest is frozen."""
    origin = f"method {method}"
    rules = (
        Rule(stages[-1].name, trainable=True, origin=origin),
        Rule(match, trainable=True, origin=origin),
        Rule("*", trainable=False, origin=origin),
    )
    return (Phase(rules),)


def by_stage(model: keras.Model, stages: Sequence[Stage]) -> dict[str, list[keras.Variable]]:
    """The variables of each stage, in the model's order."""
    patterns = {stage.name: re.compile(stage.pattern) for stage in stages}
    return {n: [v for v in model.weights if p.match(v.path)] for n, p in patterns.items()}


def blocks(stages: Sequence[Stage]) -> list[int]:
    """Places of the backbone's blocks, bottom to top; of all its stages where it has none."""
    found = [i for i, stage in enumerate(stages[:-1]) if stage.name.startswith("block_")]
    return found or list(range(len(stages) - 1))


def parameters(mask: Mask) -> tuple[int, int]:
    """How many parameters there are, and how many of them move."""
    return (
        sum(entry.size for entry in mask.entries),
        sum(entry.size for entry in mask.entries if entry.trainable),
    )


def _size(variable: keras.Variable) -> int:
    size = 1
    for dimension in variable.shape:
        size *= dimension
    return size


def _assign_stages(paths: Sequence[str], stages: Sequence[Stage]) -> dict[str, str]:
    """Each path's stage. Two or none for one path is a fault of the backbone's declaration."""
    found = {}
    for path in paths:
        names = [stage.name for stage in stages if re.match(stage.pattern, path)]
        if len(names) != 1:
            raise ValueError(
                f"Every variable must belong to exactly one stage. Received: {path} in {names}"
            )
        found[path] = names[0]
    return found


def _matches(rule: Rule, paths: Sequence[str], stages: Sequence[Stage]) -> set[str]:
    by_name = {stage.name: stage.pattern for stage in stages}
    if rule.match in by_name:
        pattern = re.compile(by_name[rule.match])
        return {path for path in paths if pattern.match(path)}
    if rule.match.startswith("re:"):
        try:
            pattern = re.compile(rule.match.removeprefix("re:"))
        except re.error as error:
            raise UserError(f"mask: {rule.match}: not a regular expression: {error}") from None
        return {path for path in paths if pattern.search(path)}
    return {path for path in paths if fnmatch.fnmatchcase(path, rule.match)}


def _audit(
    rules: Sequence[Rule],
    matched: dict[int, set[str]],
    owner: dict[str, Rule | None],
    stages: Sequence[Stage],
) -> None:
    names = [*(stage.name for stage in stages), *owner]
    errors = []
    for rule in rules:
        if not matched[id(rule)]:
            errors.append(
                f"{rule.origin}: {rule.match!r} matches nothing{nearest(rule.match, names)}"
            )
        elif rule.origin == "mask" and all(owner[path] is not rule for path in matched[id(rule)]):
            # The method's own rules may be wholly overruled: that is what `mask` is for.
            errors.append(f"mask: {rule.match!r} never decides: earlier rules match all it does")
    uncovered = [path for path, rule in owner.items() if rule is None]
    if uncovered:
        errors.append(f"mask: no rule covers {', '.join(uncovered)}")
    if errors:
        raise UserError("\n".join(errors))


def _set_layers(parent: keras.layers.Layer, moving: set[str]) -> None:
    """Set `trainable` from parents to leaves; a layer without weights follows its parent."""
    for child in parent._layers:
        if child.weights:
            child.trainable = any(variable.path in moving for variable in child.weights)
        else:
            child.trainable = parent.trainable
        if isinstance(child, keras.layers.Dropout) or (child._seed_generators and _simple(child)):
            _off_where_frozen(child)
        _set_layers(child, moving)


def _simple(layer: keras.layers.Layer) -> bool:
    """Whether a layer is of the kind of dropout: no weights, one input, `training`."""
    return not layer.weights and not layer._layers and layer._call_has_training_arg


def _off_where_frozen(dropout: keras.layers.Layer) -> None:
    """Keras' own dropout goes on where nothing moves; here it is as in inference."""
    if "off_where_frozen" in dropout.__dict__:
        return
    original = dropout.call

    def call(inputs: Any, training: bool = False) -> Any:
        return original(inputs, training=training and dropout.trainable)

    dropout.call = call
    dropout.__dict__["off_where_frozen"] = True
