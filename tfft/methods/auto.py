"""`method: {name: auto}`: method, rates, epochs and batch from the data, the backbone and the time.

The rules are published ones where there are such, and measured ones (README, "Which method") where
those were tried on small data. Whatever the config sets itself is kept. The outcome is a plain
config: a run that was advised is the run of that config.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tfft.config import Config, parse

# Rows of the training split.
FEW, SMALL, MEDIUM, LARGE = 200, 1_000, 20_000, 500_000
KNOWN = 0.98  # share of rows from which a probe leaves nothing to train below the head
STEPS = 300  # optimizer steps that little data gets at least
SMALL_BACKBONE = 50_000_000  # parameters; below it rates are higher


@dataclass(frozen=True)
class Facts:
    """What the advice rests on.

    Attributes:
        rows: of the training split, after validation is held out.
        classes: C.
        tokens: a row, in the mean; None where rows are pictures.
        parameters: of the backbone.
        blocks: that it has.
        device: `CPU`, `GPU` or `TPU`.
        memory: bytes free on it, None where that is not known.
        row_seconds: a forward pass of one row takes.
        seconds: allowed for the training, None for any.
        probe: of pictures, what a least-squares probe of a few rows of each class gets right, and
            what the commonest class alone would; None where there was none.
    """

    rows: int
    classes: int
    tokens: float | None
    parameters: int
    blocks: int
    device: str
    memory: int | None
    row_seconds: float
    seconds: float | None = None
    probe: tuple[float, float] | None = None


@dataclass
class Advice:
    """Changes to a config and why; `rate` is that of full fine-tuning without layer decay."""

    rate: float = 0.0
    method: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    augmentation: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def because(self, what: str, why: str) -> None:
        """One reason, `what` it led to first."""
        self.reasons.append(f"{what}: {why}")


def advise(config: Config, facts: Facts) -> tuple[Config, list[str]]:
    """The plain config that `auto` stands for, and its reasons, a line each."""
    advice = Advice()
    of_tokens = f" of {facts.tokens:.0f} tokens" if facts.tokens is not None else ""
    advice.reasons.append(
        f"{facts.rows:,} training rows{of_tokens}, {facts.classes} classes; a "
        f"backbone of {facts.parameters / 1e6:.1f} M parameters in {facts.blocks} blocks; "
        f"{facts.device}, {1000 * facts.row_seconds:.1f} ms forward a row"
    )
    if facts.tokens is not None:
        _length(advice, facts)
        _method(advice, facts)
    else:
        _length_of_pictures(advice, facts, config)
        _method_of_pictures(advice, facts)
    _memory(advice, facts)
    _time(advice, facts, config)
    return _applied(config, advice)


def _length(advice: Advice, facts: Facts) -> None:
    """Batch and epochs, by the number of rows."""
    rows, batch = facts.rows, 16 if facts.rows < SMALL else 32
    if rows < SMALL:
        epochs = min(30, max(5, math.ceil(STEPS * batch / rows)))
        why = (
            f"at least {STEPS} steps on little data; instability of fine-tuning is mostly too few "
            "steps (Mosbach 2021; Zhang 2021, section 5)"
        )
    elif rows < MEDIUM:
        epochs, why = 4, "3 to 5 epochs (Devlin 2019, appendix A.3)"
    elif rows < LARGE:
        epochs, why = 3, "2 to 4 epochs on large data (Devlin 2019, appendix A.3)"
    else:
        epochs, batch, why = 1, 64, "one pass over this many rows"
    advice.train |= {"epochs": epochs, "batch_size": batch}
    advice.because(f"epochs {epochs}, batch {batch}", why)


def _method(advice: Advice, facts: Facts) -> None:
    """Method and rate, by the number of rows and the size of the backbone."""
    small = facts.parameters < SMALL_BACKBONE
    advice.rate = rate = 1e-4 if small else 3e-5
    advice.method = {"name": "full"}
    advice.because(
        "method full",
        "on 100, 500 and 5,452 rows of TREC with MiniLM no other beat it by more than its "
        "interval; cheaper ones come in where memory or time demands it (README, Which method)",
    )
    if facts.rows < (MEDIUM if small else SMALL):
        advice.optimizer = {"learning_rate": 2 * rate, "layer_decay": 0.8}
        advice.because(
            f"learning rate {2 * rate:g}, layer decay 0.8",
            "beside half the rate without decay 1.1 ± 1.6 points on 100 rows of TREC, 0.2 ± 0.6 on "
            "500, 0.2 ± 0.6 on 5,452 (README, Which method; Zhang 2021)",
        )
        return
    advice.optimizer = {"learning_rate": rate}
    advice.because(
        f"learning rate {rate:g}",
        "best of 5e-5 to 4e-4 on MiniLM and 500 rows of TREC (benchmarks/methods.py --sweep)"
        if small
        else "2e-5 to 5e-5 for backbones of BERT-base's size and more (Devlin 2019, appendix A.3)",
    )
    if facts.rows < MEDIUM:
        advice.optimizer["layer_decay"] = 0.9
        advice.because("layer decay 0.9", "below 20,000 rows (AutoGluon's default)")


def _length_of_pictures(advice: Advice, facts: Facts, config: Config) -> None:
    """Steps by the number of rows alone, and MixUp from many rows on: BiT's rule."""
    rows = facts.rows
    steps = 500 if rows < MEDIUM else 10_000 if rows < LARGE else 20_000
    batch = 32 if facts.device == "CPU" else 128
    epochs = max(5, math.ceil(steps * batch / rows))
    if rows < SMALL:  # little data is not seen more often than this
        epochs = min(epochs, 30)
    advice.train = {"epochs": epochs, "batch_size": batch}
    advice.because(
        f"epochs {epochs}, batch {batch}",
        f"{steps:,} steps or 5 epochs, by the number of rows alone (BiT's rule: Kolesnikov 2020, "
        "section 3.3; its batch of 512 asks for more memory than this)",
    )
    if rows >= MEDIUM and not config.task.multi_label and not config.augmentation.cutmix:
        advice.augmentation = {"mixup": 0.1}
        advice.because("mixup 0.1", "from 20,000 rows on (BiT's rule)")


def _method_of_pictures(advice: Advice, facts: Facts) -> None:
    """By what the features know of the classes before any training."""
    small = facts.parameters < SMALL_BACKBONE
    advice.rate = rate = 5e-4 if small else 5e-5
    if facts.probe is not None:
        right, chance = facts.probe
        found = f"least squares on a few rows of each class gets {right:.0%} of others right"
        if right >= KNOWN:
            advice.method = {"name": "head"}
            advice.optimizer = {"learning_rate": 3e-3}
            advice.train["epochs"] = max(20, advice.train["epochs"])
            advice.because("method head", f"{found}: the features know the classes already")
            return
        if right < chance + 0.05:
            advice.method, advice.optimizer = {"name": "full"}, {"learning_rate": rate}
            advice.because(
                f"method full, learning rate {rate:g}",
                f"{found}, the commonest class alone {chance:.0%}: a head on these features has "
                "nothing to begin with",
            )
            return
        advice.reasons.append(found)
    advice.method, advice.optimizer = {"name": "lp_ft"}, {"learning_rate": rate}
    advice.because(
        f"method lp_ft, learning rate {rate:g}",
        "a head first, then all (Kumar 2022); with MobileNetV2 on 4,500 pictures of CIFAR-10 "
        "81.9 ± 0.5, all at once 81.7 ± 2.1 (README, Pictures)",
    )


def _memory(advice: Advice, facts: Facts) -> None:
    """LoRA where weights, gradients and Adam's moments would take most of the memory."""
    if facts.memory is None:
        return
    needed = 16 * facts.parameters
    if needed <= 0.6 * facts.memory:
        return
    advice.method = {"name": "lora"}
    rate = 10 * advice.rate
    advice.optimizer = {"learning_rate": rate}
    advice.because(
        f"method lora, learning rate {rate:g}",
        f"weights, gradients and moments of all need {needed / 2**30:.1f} GiB, more than 60 % of "
        f"the {facts.memory / 2**30:.1f} GiB that are free (Hu 2022; ten times the rate of full; "
        "on TREC a point below full)",
    )


def _time(advice: Advice, facts: Facts, config: Config) -> None:
    """Fewer epochs, then fewer moving blocks with a cached prefix, until the time suffices."""
    if facts.seconds is None:
        return
    epochs = config.train.epochs if "epochs" in config.train.model_fields_set else None
    epochs = epochs or advice.train["epochs"]
    one_pass = facts.rows * facts.row_seconds
    allowed = f"{facts.seconds / 60:g} minutes"
    # Forward and backward cost three times the forward pass (Kaplan 2020, section 2.1).
    if 3 * one_pass * epochs <= facts.seconds:
        advice.because(f"about {_minutes(3 * one_pass * epochs)}", f"within the {allowed} allowed")
        return
    least = max(1, epochs // 2)
    fitting = int(facts.seconds / (3 * one_pass))
    if fitting >= least and advice.method["name"] != "lora":
        advice.train["epochs"] = fitting
        advice.because(f"epochs {fitting}", f"{epochs} would take longer than {allowed}")
        return
    texts = facts.tokens is not None
    top = min(2 if texts else 4, facts.blocks)
    share = top / max(1, facts.blocks)
    if one_pass * (1 + 3 * share * epochs) <= facts.seconds and facts.blocks > top:
        advice.method = {"name": "top", "stages": top}
        rate = advice.rate * (5 if texts else 2)
        advice.optimizer = {"learning_rate": rate}
        why = f"all blocks would take longer than {allowed}; the rest is computed once and cached"
        measured = (
            "Lee 2019; on TREC with MiniLM 3 points below full on 100 rows, 1.4 on 500, 0.6 on "
            "5,452"
            if texts
            else "with MobileNetV2 on CIFAR-10 80.0 ± 3.6, all of it 81.7 ± 2.1"
        )
        advice.because(f"method top, {top} blocks, rate {rate:g}", f"{why} ({measured})")
        return
    advice.method = {"name": "head"}
    advice.optimizer = {"learning_rate": 3e-3}
    advice.train["epochs"] = max(20, epochs)
    advice.because(
        "method head, 20 epochs or more",
        f"nothing else fits in {allowed}: one pass over the rows takes {_minutes(one_pass)}, and "
        "the epochs after it read its cached features "
        + (
            "(on TREC 8 to 25 points below full)"
            if texts
            else "(on CIFAR-10 with MobileNetV2 15 points below full)"
        ),
    )


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} s"


def _applied(config: Config, advice: Advice) -> tuple[Config, list[str]]:
    """The config with the advice where it sets nothing itself."""
    raw = config.model_dump(mode="json")
    raw["method"] = advice.method
    reasons = list(advice.reasons)
    for name in ("optimizer", "train", "augmentation"):
        own: set[str] = getattr(config, name).model_fields_set
        changes: Mapping[str, Any] = getattr(advice, name)
        kept = sorted(own & set(changes))
        if kept:
            reasons.append(f"kept as given: {', '.join(f'{name}.{key}' for key in kept)}")
        raw[name] |= {key: value for key, value in changes.items() if key not in own}
    return parse(raw), reasons
