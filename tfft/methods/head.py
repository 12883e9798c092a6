"""The head alone moves: a linear probe of the pretrained features (Alain & Bengio 2016)."""

from typing import Any

from tfft.spec import Method, Phase, Rule, Stage


def apply(_: Any, stages: tuple[Stage, ...], *__: Any) -> tuple[Phase, ...]:
    """The last stage moves, the rest is frozen."""
    return (
        Phase(
            (
                Rule(stages[-1].name, trainable=True, origin="method head"),
                Rule("*", trainable=False, origin="method head"),
            )
        ),
    )


METHOD = Method("head", apply)
