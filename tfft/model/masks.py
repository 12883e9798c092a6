"""Masks: a total, audited decision of which variables are trainable, from a list of rules.

The first rule that matches a variable decides it. A rule that matches no variable is an error (a
typo, or the model differs from what its author expected), and so is a variable that no rule covers.
The mask is decided once, after every layer exists. It is set in one pass from parents to leaves to
variables, because setting `trainable` of a Keras layer overwrites it in all layers below.

The layers of a stage without trainable variables run as in inference. Their dropout is off too, so
the output of a frozen stage is the same in every step.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras

from tfft.model.wrapping import Call, Order, wrap_call
from tfft.spec import Mask, MaskEntry, Phase, Rule, Stage
from tfft.utils import keras_internals
from tfft.utils.errors import UserError, nearest


def apply(model: keras.Model, stages: Sequence[Stage], rules: Sequence[Rule]) -> Mask:
    """Decide the mask of `model`, and set `trainable` on its layers and variables.

    Args:
        model: changed in place.
        stages: stages of the model; each variable belongs to exactly one.
        rules: the first match decides.

    Raises:
        UserError: a rule matches no variable, a variable is covered by no rule, or no variable is
            trainable.
    """
    mask = decide(variables(model), stages, rules, statistics(model))
    set_trainable(model, mask)
    return mask


def variables(model: keras.Model) -> list[tuple[str, int]]:
    """Return path and size of every variable, in the model's order."""
    return [(v.path, _num_elements(v)) for v in model.weights]


def statistics(model: keras.Model) -> frozenset[str]:
    """Return paths of the variables that are never trainable.

    These are the statistics of BatchNorm and the codes of quantized kernels.
    """
    # The private list holds what was created with `trainable=False`. The public property also
    # returns what a mask has frozen, and no later phase could train it again.
    layers = [x for x in keras_internals.flat_layers(model) if isinstance(x, keras.layers.Layer)]
    return frozenset(v.path for x in layers for v in keras_internals.fixed_variables(x))


def set_trainable(model: keras.Model, mask: Mask) -> None:
    """Set `trainable` on the layers and variables of `model` as the mask says."""
    trainable = {entry.path for entry in mask.entries if entry.trainable}
    # Unfreeze all first: `trainable` of a variable is set below only where it is False, and an
    # earlier phase may have frozen it.
    model.trainable = True
    _set_layers(model, trainable)
    # Last, since setting a layer's `trainable` overwrites that of its variables.
    for variable in model.weights:
        if variable.path not in trainable:
            variable.trainable = False


def layer_decay(mask: Mask, stages: Sequence[Stage], decay: float) -> Mask:
    """Multiply the learning rates of each stage by `decay` to the power of its depth.

    Sun et al. 2019, "How to Fine-Tune BERT for Text Classification?", section 5.3.4; depths as in
    Bao et al. 2022 (BEiT).
    """
    depth = depths(stages)
    entries = tuple(
        replace(entry, learning_rate=entry.learning_rate * decay ** depth[entry.stage])
        for entry in mask.entries
    )
    return Mask(entries, _rates(entries))


def union(masks: Sequence[Mask]) -> Mask:
    """Return a mask of all variables that are trainable in any mask, with their last rates."""
    entries = []
    for candidates in zip(*(mask.entries for mask in masks), strict=True):
        trainable = [entry for entry in candidates if entry.trainable]
        entries.append((trainable or candidates)[-1])
    return Mask(tuple(entries), _rates(entries))


def decide(
    variables: Sequence[tuple[str, int]],
    stages: Sequence[Stage],
    rules: Sequence[Rule],
    fixed: frozenset[str] = frozenset(),
) -> Mask:
    """Decide the mask of variables given as (path, size), without a model.

    Args:
        variables: path and number of elements of each variable.
        stages: stages of the model; each variable belongs to exactly one.
        rules: the first match decides.
        fixed: paths that are never trainable, whatever the rules say.

    Raises:
        UserError: as in `apply`.
        ValueError: a variable belongs to no stage, or to several.
    """
    paths = [path for path, _ in variables]
    # 1. Which stage and which rules each variable belongs to.
    stage_of = _assign_stages(paths, stages)
    matched = {id(rule): _matches(rule, paths, stages) for rule in rules}
    owner = {p: next((r for r in rules if p in matched[id(r)]), None) for p in paths}
    # 2. Refuse dead rules and uncovered variables before anything is decided.
    _audit(rules, matched, owner, stages)
    # 3. One entry for each variable, in the model's order.
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
        raise UserError(
            "mask: the rules of method and mask freeze every variable; leave at least one trainable"
        )
    return Mask(entries, _rates(entries))


def _rates(entries: Sequence[MaskEntry]) -> dict[str, float]:
    return {e.path: e.learning_rate for e in entries if e.trainable and e.learning_rate != 1}


def table(mask: Mask, starts: Mapping[str, int] | None = None) -> str:
    """Format a mask as a text table: a line per stage, then the totals.

    Args:
        mask: the mask to format.
        starts: path -> first step in which the variable is trainable, where that is not step 0.
            The line of a stage shows the lowest one.
    """
    starts = starts or {}
    rows = [("stage", "variables", "parameters", "trainable", "lr factor")]
    for stage in dict.fromkeys(entry.stage for entry in mask.entries):
        entries = [e for e in mask.entries if e.stage == stage]
        trainable = [e for e in entries if e.trainable]
        rates = sorted({e.learning_rate for e in trainable})
        # A stage may have several factors, where rules of `mask` split it.
        rate_text = ", ".join(f"{rate:.3g}" for rate in rates) or "frozen"
        if start := min((starts.get(e.path, 0) for e in trainable), default=0):
            rate_text += f" from step {start:,}"
        rows.append(
            (
                stage,
                str(len(entries)),
                f"{sum(e.size for e in entries):,}",
                f"{sum(e.size for e in trainable):,}",
                rate_text,
            )
        )
    total, num_trainable = parameters(mask)
    rows.append(("total", str(len(mask.entries)), f"{total:,}", f"{num_trainable:,}", ""))
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
    summary = (
        f"{num_trainable:,} of {total:,} parameters are trainable ({num_trainable / total:.2%})"
    )
    return "\n".join([*lines, summary])


def head_and_matches(stages: Sequence[Stage], match: str, method: str) -> tuple[Phase, ...]:
    """Return one phase that trains the head and the variables of a rule, and freezes the rest.

    Args:
        stages: stages of the model, the head last.
        match: as in `Rule`.
        method: name of the method, for error messages.
    """
    origin = f"method {method}"
    rules = (
        # The first match decides, so the catch-all `*` comes last.
        Rule(stages[-1].name, trainable=True, origin=origin),
        Rule(match, trainable=True, origin=origin),
        Rule("*", trainable=False, origin=origin),
    )
    return (Phase(rules),)


def variables_by_stage(
    model: keras.Model, stages: Sequence[Stage]
) -> dict[str, list[keras.Variable]]:
    """Return the variables of each stage by its name, in the model's order."""
    patterns = {stage.name: re.compile(stage.pattern) for stage in stages}
    return {n: [v for v in model.weights if p.match(v.path)] for n, p in patterns.items()}


def depths(stages: Sequence[Stage]) -> dict[str, int]:
    """Return the depth of each stage by its name: its distance from the head in its own backbone.

    The depth of the head and of the stages between it and the top block is 0, that of the top block
    1, that of the embeddings blocks + 1.

    Args:
        stages: stages of the model, the head last; of two backbones one after the other.
    """
    result = {}
    for tower in towers(stages):
        blocks = block_indices(tower)
        result |= {s.name: max(0, blocks[-1] + 1 - i) for i, s in enumerate(tower)}
    return {**result, stages[-1].name: 0}


def towers(stages: Sequence[Stage]) -> list[list[Stage]]:
    """Return the stages of each backbone, bottom to top, without the head."""
    result: dict[str, list[Stage]] = {}
    for stage in stages[:-1]:
        result.setdefault(stage.tower, []).append(stage)
    return list(result.values())


def num_blocks(stages: Sequence[Stage]) -> int:
    """Return the number of blocks of the backbone; of two, the smaller number."""
    return min(len(block_indices(tower)) for tower in towers(stages))


def block_indices(tower: Sequence[Stage]) -> list[int]:
    """Return the indices of the blocks among the stages of a backbone, bottom to top.

    In a backbone without stages named `block_...`, every stage counts as a block.
    """
    indices = [i for i, stage in enumerate(tower) if stage.part.startswith("block_")]
    return indices or list(range(len(tower)))


def parameters(mask: Mask) -> tuple[int, int]:
    """Return the number of parameters, and the number of trainable ones."""
    return (
        sum(entry.size for entry in mask.entries),
        sum(entry.size for entry in mask.entries if entry.trainable),
    )


def _num_elements(variable: keras.Variable) -> int:
    size = 1
    for dimension in variable.shape:
        size *= dimension
    return size


def _assign_stages(paths: Sequence[str], stages: Sequence[Stage]) -> dict[str, str]:
    """Return path -> stage name.

    Raises:
        ValueError: a path belongs to no stage or to several, an error in the backbone's stages.
    """
    stage_of = {}
    for path in paths:
        names = [stage.name for stage in stages if re.match(stage.pattern, path)]
        if len(names) != 1:
            raise ValueError(
                f"Every variable must belong to exactly one stage. Received: {path} in {names}"
            )
        stage_of[path] = names[0]
    return stage_of


def _matches(rule: Rule, paths: Sequence[str], stages: Sequence[Stage]) -> set[str]:
    """Return the paths that a rule matches: by stage name, `re:` expression or glob."""
    by_name = {stage.name: stage.pattern for stage in stages}
    # A stage's name wins over a glob of the same text.
    if rule.match in by_name:
        pattern = re.compile(by_name[rule.match])
        return {path for path in paths if pattern.match(path)}
    if rule.match.startswith("re:"):
        try:
            pattern = re.compile(rule.match.removeprefix("re:"))
        except re.error as error:
            raise UserError(
                f"mask: must be a regular expression after `re:`: {error}. Received: {rule.match!r}"
            ) from None
        return {path for path in paths if pattern.search(path)}
    # `fnmatchcase`: `fnmatch` would fold case and slashes on Windows.
    return {path for path in paths if fnmatch.fnmatchcase(path, rule.match)}


def _audit(
    rules: Sequence[Rule],
    matched: dict[int, set[str]],
    owner: dict[str, Rule | None],
    stages: Sequence[Stage],
) -> None:
    """Raise one error that names every dead rule and every variable without a rule."""
    stage_names = [stage.name for stage in stages]
    names = [*stage_names, *owner]
    errors = []
    for rule in rules:
        # A method may name a stage without variables, such as a head that has none.
        is_stage_of_method = rule.origin != "mask" and rule.match in stage_names
        if not matched[id(rule)] and rule.match in stage_names and not is_stage_of_method:
            errors.append(f"{rule.origin}: the stage has no variables. Received: {rule.match!r}")
        elif not matched[id(rule)] and not is_stage_of_method:
            errors.append(
                f"{rule.origin}: must match a stage or a variable. Received: {rule.match!r}"
                f"{nearest(rule.match, names)}"
            )
        elif rule.origin == "mask" and all(owner[path] is not rule for path in matched[id(rule)]):
            # Rules of the method may be overruled entirely: that is the purpose of `mask`.
            errors.append(
                "mask: must match a variable that no earlier rule matches. "
                f"Received: {rule.match!r}"
            )
    uncovered = [path for path, rule in owner.items() if rule is None]
    if uncovered:
        errors.append(f"mask: no rule covers {', '.join(uncovered)}")
    if errors:
        raise UserError("\n".join(errors))


def _set_layers(parent: keras.layers.Layer, trainable: set[str]) -> None:
    """Set `trainable` from parents to leaves; a layer without weights follows its parent."""
    # Level by level: a layer without weights needs its parent.
    for layer in keras_internals.sublayers(parent):
        if layer.weights:
            # Layers of a frozen stage run in inference mode (BatchNorm, dropout). One trainable
            # variable keeps the layer trainable; its other variables are frozen one by one
            # afterwards.
            layer.trainable = any(variable.path in trainable for variable in layer.weights)
        else:
            layer.trainable = parent.trainable
        if isinstance(layer, keras.layers.Dropout) or (
            # Keras' other random layers (GaussianNoise, AlphaDropout) have no common base class.
            keras_internals.seed_generators(layer) and _is_like_dropout(layer)
        ):
            _disable_when_frozen(layer)
        _set_layers(layer, trainable)


def _is_like_dropout(layer: keras.layers.Layer) -> bool:
    """Return whether a layer has no weights, no sublayers, and a `training` argument."""
    parts = layer.weights or keras_internals.sublayers(layer)
    return not parts and keras_internals.calls_with_training(layer)


def _disable_when_frozen(dropout: keras.layers.Layer) -> None:
    """Make a dropout layer run as in inference while its `trainable` is False.

    Keras' dropout depends on `training` alone, and stays on in a frozen stage.
    """
    # Once: masks are set in every phase, and each wrapper would call the one before.
    if "disabled_when_frozen" in dropout.__dict__:
        return

    def wrap(inner: Call) -> Call:
        def call(inputs: Any, training: bool = False) -> Any:
            # Read while the step is traced; each phase traces again.
            return inner(inputs, training=training and dropout.trainable)

        return call

    wrap_call(dropout, wrap, Order.FROZEN)
    dropout.__dict__["disabled_when_frozen"] = True
