"""How a train step computes, and what it reports."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import keras
import tensorflow as tf


@dataclass
class StepReport:
    """Result of one call of the train function.

    Attributes:
        steps: number of steps, skipped ones included.
        loss: loss of the last batch, over all replicas.
        skipped: number of steps that changed nothing, since loss or gradients were not finite.
        wait: estimated seconds in which the steps waited for input.
    """

    steps: int = 0
    loss: float = 0.0
    skipped: int = 0
    wait: float = 0.0


@dataclass(frozen=True)
class StepOptions:
    """How a train step computes. A train function is traced with one value of it.

    Attributes:
        micro_batch: rows per micro-batch of a replica. A larger batch is split, and the gradients
            of its micro-batches are summed. None: batches are not split. Another number needs no
            other trace.
        jit_compile: whether XLA compiles the gradient computation. The `jit_compile` of
            `keras.Model.compile` does too, but fails under op determinism.
        upper_part: trainable part of the model above the cached features
            (`feature_cache.ModelSplit`), or None. With it, every method that takes inputs also
            takes the cached features in place of the model's inputs.
        consistency: computes the loss of a batch in place of the plain loss
            (`regularizers.r_drop`), or None.
        adversary: computes the gradients in several passes (`regularizers.adversarial`), or None.
        penalties: functions whose values are added to the gradients (`regularizers.penalties`).
        failed_attempts: number of failed attempts at a step. Their graphs leave state behind under
            their names, so the loop of a function built later takes another name.
    """

    micro_batch: int | None = None
    jit_compile: bool = False
    upper_part: keras.Model | None = None
    consistency: Any = None
    adversary: Any = None
    penalties: tuple[Callable[[str, tf.Tensor], Any], ...] = ()
    failed_attempts: int = 0

    def traces_like(self, other: "StepOptions") -> bool:
        """Return whether functions traced with `other` compute with these options too."""
        splits = self.micro_batch is None, other.micro_batch is None
        return splits[0] == splits[1] and replace(self, micro_batch=other.micro_batch) == other
