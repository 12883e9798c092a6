"""`method: {name: auto}`: choose method, learning rates, epochs and batch size.

The rules are published ones where they exist, and otherwise follow measurements on small data
(docs/methods.md). Values that the config sets itself are kept. The result is a plain config, and
the run is exactly the run of that config.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tfft.config import Config, parse

# Sizes of the training split, in rows.
SMALL, MEDIUM, LARGE = 1_000, 20_000, 500_000
SOLVED_ACCURACY = 0.98  # accuracy of the probe from which training the head alone is enough
MIN_STEPS = 300  # optimizer steps on small data
MIN_PHASE_STEPS = 4  # steps of a training with two phases
# Forward and backward pass, in forward passes (Kaplan 2020, section 2.1).
STEP_COST = 3
SMALL_BACKBONE = 50_000_000  # parameters; smaller backbones get higher learning rates


@dataclass(frozen=True)
class Facts:
    """Properties of data, backbone and device that the advice depends on.

    Attributes:
        num_rows: number of training rows, after validation is held out.
        answers: what a row is answered with, such as `6 classes`.
        mean_tokens: mean number of tokens per row; None for images.
        num_parameters: number of parameters of the backbone.
        num_blocks: number of blocks of the backbone.
        device: `CPU`, `GPU` or `TPU`.
        free_memory: free memory of the device in bytes, None if unknown.
        seconds_per_row: seconds of a forward pass per row.
        time_limit: time limit of the training in seconds, None for no limit.
        probe_accuracy: accuracy of a least-squares probe on a few images per class, and accuracy of
            always predicting the most frequent class; None without a probe.
    """

    num_rows: int
    answers: str
    mean_tokens: float | None
    num_parameters: int
    num_blocks: int
    device: str
    free_memory: int | None
    seconds_per_row: float
    time_limit: float | None = None
    probe_accuracy: tuple[float, float] | None = None


@dataclass
class Advice:
    """Changes to a config, and their reasons.

    Attributes:
        rate: learning rate of full fine-tuning without layer decay.
        method: the new section `method`.
        optimizer: changes to the section `optimizer`.
        train: changes to the section `train`.
        augmentation: changes to the section `augmentation`.
        reasons: one line each.
    """

    rate: float = 0.0
    method: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def explain(self, decision: str, reason: str) -> None:
        """Append a decision with its reason."""
        self.reasons.append(f"{decision}: {reason}")


def advise(config: Config, facts: Facts) -> tuple[Config, list[str]]:
    """Choose the values that a config with `method: auto` leaves open.

    Args:
        config: values that it sets are kept.
        facts: properties of data, backbone and device.

    Returns:
        The plain config, and the reasons for it, one line each.
    """
    advice = Advice()
    tokens = f" of {facts.mean_tokens:.0f} tokens" if facts.mean_tokens is not None else ""
    advice.reasons.append(
        f"{facts.num_rows:,} training rows{tokens}, {facts.answers}; a "
        f"backbone of {facts.num_parameters / 1e6:.1f} M parameters in {facts.num_blocks} blocks; "
        f"{facts.device}, {1000 * facts.seconds_per_row:.1f} ms per row and forward pass"
    )
    if facts.mean_tokens is not None:
        # In this order: the method of images may raise the epochs, and the time depends on both.
        _choose_text_epochs(advice, facts)
        _choose_text_method(advice, facts)
    else:
        _choose_image_epochs(advice, facts, config)
        _choose_image_method(advice, facts)
    _fit_memory(advice, facts)
    _fit_time(advice, facts, config)
    _fit_steps(advice, facts, config)
    return _apply_advice(config, advice)


def _choose_text_epochs(advice: Advice, facts: Facts) -> None:
    """Choose batch size and epochs by the number of rows."""
    rows, batch = facts.num_rows, 16 if facts.num_rows < SMALL else 32
    if rows < SMALL:
        epochs = min(30, max(5, math.ceil(MIN_STEPS * batch / rows)))
        reason = (
            f"at least {MIN_STEPS} steps on small data; too few steps are the main cause of "
            "unstable fine-tuning (Mosbach 2021; Zhang 2021, section 5)"
        )
    elif rows < MEDIUM:
        epochs, reason = 4, "3 to 5 epochs (Devlin 2019, appendix A.3)"
    elif rows < LARGE:
        epochs, reason = 3, "2 to 4 epochs on large data (Devlin 2019, appendix A.3)"
    else:
        epochs, batch, reason = 1, 64, "one pass is enough with this many rows"
    advice.train |= {"epochs": epochs, "batch_size": batch}
    advice.explain(f"epochs {epochs}, batch {batch}", reason)


def _choose_text_method(advice: Advice, facts: Facts) -> None:
    """Choose method and learning rate by the number of rows and the size of the backbone."""
    small = facts.num_parameters < SMALL_BACKBONE
    advice.rate = rate = 1e-4 if small else 3e-5
    advice.method = {"name": "full"}
    advice.explain(
        "method full",
        "on 100, 500 and 5,452 rows of TREC with MiniLM no other method was better by more than "
        "its interval; cheaper methods are for tight memory or time (docs/methods.md)",
    )
    if facts.num_rows < (MEDIUM if small else SMALL):
        advice.optimizer = {"learning_rate": 2 * rate, "layer_decay": 0.8}
        advice.explain(
            f"learning rate {2 * rate:g}, layer decay 0.8",
            "against half the rate without decay it gains 1.1 ± 1.6 points on 100 rows of TREC, "
            "0.2 ± 0.6 on 500, 0.2 ± 0.6 on 5,452 (docs/methods.md; Zhang 2021)",
        )
        return
    advice.optimizer = {"learning_rate": rate}
    advice.explain(
        f"learning rate {rate:g}",
        "best of 5e-5 to 4e-4 on MiniLM and 500 rows of TREC (benchmarks/methods.py --sweep)"
        if small
        else "2e-5 to 5e-5 for backbones from BERT-base's size (Devlin 2019, appendix A.3)",
    )
    if facts.num_rows < MEDIUM:
        advice.optimizer["layer_decay"] = 0.9
        advice.explain("layer decay 0.9", "below 20,000 rows (AutoGluon's default)")


def _choose_image_epochs(advice: Advice, facts: Facts, config: Config) -> None:
    """Choose batch size, epochs and MixUp by the number of rows alone (BiT's rule)."""
    rows = facts.num_rows
    steps = 500 if rows < MEDIUM else 10_000 if rows < LARGE else 20_000
    # The number of steps is fixed, so a smaller batch means fewer epochs.
    batch = 32 if facts.device == "CPU" else 128
    epochs = max(5, math.ceil(steps * batch / rows))
    if rows < SMALL:  # without a bound, 20 rows would be repeated 800 times
        epochs = min(epochs, 30)
    advice.train = {"epochs": epochs, "batch_size": batch}
    advice.explain(
        f"epochs {epochs}, batch {batch}",
        f"{steps:,} steps or 5 epochs, by the number of rows alone (BiT's rule: Kolesnikov 2020, "
        "section 3.3; its batch of 512 needs more memory)",
    )
    if rows >= MEDIUM and config.task.targets == "class" and not config.augmentation.cutmix:
        advice.augmentation = {"mixup": 0.1}
        advice.explain("mixup 0.1", "for 20,000 rows and more (BiT's rule)")


def _choose_image_method(advice: Advice, facts: Facts) -> None:
    """Choose the method by how well the pretrained features separate the classes."""
    small = facts.num_parameters < SMALL_BACKBONE
    advice.rate = rate = 5e-4 if small else 5e-5
    if facts.probe_accuracy is not None:
        accuracy, chance = facts.probe_accuracy
        result = f"a probe fitted to a few rows per class is right on {accuracy:.0%} of other rows"
        if accuracy >= SOLVED_ACCURACY:
            advice.method = {"name": "head"}
            advice.optimizer = {"learning_rate": 3e-3}
            advice.train["epochs"] = max(20, advice.train["epochs"])
            advice.explain("method head", f"{result}: the features separate the classes")
            return
        if accuracy < chance + 0.05:
            advice.method, advice.optimizer = {"name": "full"}, {"learning_rate": rate}
            advice.explain(
                f"method full, learning rate {rate:g}",
                f"{result}, the most frequent class {chance:.0%}: a head alone cannot learn from "
                "these features",
            )
            return
        advice.reasons.append(result)
    advice.method, advice.optimizer = {"name": "lp_ft"}, {"learning_rate": rate}
    advice.explain(
        f"method lp_ft, learning rate {rate:g}",
        "first the head, then all stages (Kumar 2022); with MobileNetV2 on 4,500 images of "
        "CIFAR-10 81.9 ± 0.5, full fine-tuning 81.7 ± 2.1",
    )


def _fit_memory(advice: Advice, facts: Facts) -> None:
    """Choose LoRA where weights, gradients and Adam's moments would take most of the memory."""
    if facts.free_memory is None:
        return
    needed = 16 * facts.num_parameters  # bytes: four float32 values per parameter
    if needed <= 0.6 * facts.free_memory:
        return
    advice.method = {"name": "lora"}
    # `advice.rate`, not the rate chosen before: that one may be meant for layer decay.
    rate = 10 * advice.rate
    advice.optimizer = {"learning_rate": rate}
    advice.explain(
        f"method lora, learning rate {rate:g}",
        f"weights, gradients and moments need {needed / 2**30:.1f} GiB for method full, more than "
        f"60 % of the free {facts.free_memory / 2**30:.1f} GiB (Hu 2022; ten times the rate of "
        "full; on TREC one point below full)",
    )


def _of_training(name: str, advice: Advice, config: Config) -> int:
    """Return a value of the section `train`: the config's where it is set, else the advice's."""
    is_set = name in config.train.model_fields_set
    return int(getattr(config.train, name) if is_set else advice.train[name])


def _fit_steps(advice: Advice, facts: Facts, config: Config) -> None:
    """Train all stages at once where there are too few steps to train the head first."""
    per_epoch = math.ceil(facts.num_rows / _of_training("batch_size", advice, config))
    steps = per_epoch * _of_training("epochs", advice, config)
    if advice.method["name"] == "lp_ft" and steps < MIN_PHASE_STEPS:
        advice.method = {"name": "full"}
        advice.explain("method full", f"{steps} steps are too few for two phases")


def _fit_time(advice: Advice, facts: Facts, config: Config) -> None:
    """Reduce the cost to the time limit: fewer epochs, then fewer trainable blocks, then the head.

    Frozen lower blocks cost one forward pass over the data, since their features are cached.
    """
    if facts.time_limit is None:
        return
    epochs = _of_training("epochs", advice, config)
    # 1. Everything fits.
    forward_seconds = facts.num_rows * facts.seconds_per_row
    limit = f"{facts.time_limit / 60:g} minutes"
    if STEP_COST * forward_seconds * epochs <= facts.time_limit:
        advice.explain(
            f"about {_format_duration(STEP_COST * forward_seconds * epochs)}",
            f"within the limit of {limit}",
        )
        return
    # 2. Fewer epochs, at least half of them.
    min_epochs = max(1, epochs // 2)
    max_epochs = int(facts.time_limit / (STEP_COST * forward_seconds))
    if max_epochs >= min_epochs and advice.method["name"] != "lora":
        advice.train["epochs"] = max_epochs
        advice.explain(f"epochs {max_epochs}", f"{epochs} would take longer than {limit}")
        return
    # 3. The top blocks: one forward pass fills the cache, then only their share is computed.
    is_text = facts.mean_tokens is not None
    num_blocks = min(2 if is_text else 4, facts.num_blocks)
    share = num_blocks / max(1, facts.num_blocks)
    if (
        forward_seconds * (1 + STEP_COST * share * epochs) <= facts.time_limit
        and facts.num_blocks > num_blocks
    ):
        advice.method = {"name": "top", "stages": num_blocks}
        rate = advice.rate * (5 if is_text else 2)
        advice.optimizer = {"learning_rate": rate}
        reason = f"all blocks would take longer than {limit}; features of frozen blocks are cached"
        evidence = (
            "Lee 2019; on TREC with MiniLM 3 points below full on 100 rows, 1.4 on 500, 0.6 on "
            "5,452"
            if is_text
            else "with MobileNetV2 on CIFAR-10 80.0 ± 3.6, full fine-tuning 81.7 ± 2.1"
        )
        advice.explain(f"method top, {num_blocks} blocks, rate {rate:g}", f"{reason} ({evidence})")
        return
    advice.method = {"name": "head"}
    advice.optimizer = {"learning_rate": 3e-3}
    advice.train["epochs"] = max(20, epochs)
    advice.explain(
        "method head, 20 epochs or more",
        f"nothing else fits in {limit}: one pass over the rows takes "
        f"{_format_duration(forward_seconds)}, and later epochs read cached features "
        + (
            "(on TREC 8 to 25 points below full)"
            if is_text
            else "(on CIFAR-10 with MobileNetV2 15 points below full)"
        ),
    )


def _format_duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} s"


def _apply_advice(config: Config, advice: Advice) -> tuple[Config, list[str]]:
    """Return the config with the advice for values that it does not set, and all reasons."""
    # Through plain data and `parse`, so that the result is validated like a config from a file.
    raw = config.model_dump(mode="json")
    raw["method"] = advice.method
    reasons = list(advice.reasons)
    for name in ("optimizer", "train", "augmentation"):
        explicit: set[str] = getattr(config, name).model_fields_set
        changes: Mapping[str, Any] = getattr(advice, name)
        keys = sorted(explicit & set(changes))
        if keys:
            reasons.append(f"kept from the config: {', '.join(f'{name}.{key}' for key in keys)}")
        raw[name] |= {key: value for key, value in changes.items() if key not in explicit}
    return parse(raw), reasons
