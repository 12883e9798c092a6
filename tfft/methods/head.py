"""Head only: a linear probe of the pretrained features (Alain & Bengio 2016)."""

from typing import Any

from tfft.spec import Method, Phase, Rule, Stage


def apply(_: Any, stages: tuple[Stage, ...], *__: Any) -> tuple[Phase, ...]:
    """Return one phase that trains the head, the last stage, and freezes the rest."""
    return (
        Phase(
            (
                Rule(stages[-1].name, trainable=True, origin="method head"),
                Rule("*", trainable=False, origin="method head"),
            )
        ),
    )


METHOD = Method("head", apply)
