"""Prompt tuning: trained vectors before the embedded text.

Lester, Al-Rfou & Constant 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning". The
vectors take the first positions; what the blocks make of them is left out of the features, so
that the first token is still the first of the text.
"""

import keras
from keras import ops

from tfft.backbones.families.encoder import AttentionBias, WithoutPrompt
from tfft.backbones.families.layers import Embeddings
from tfft.config.methods import PromptMethod
from tfft.model import injection, masks
from tfft.spec import Method, Phase, Stage
from tfft.utils.errors import UserError


class Prompt(keras.layers.Layer):
    """`length` vectors of the embeddings' width D.

    Args:
        start: their first values, an initializer.
    """

    def __init__(self, length: int, width: int, start, **kwargs):
        super().__init__(**kwargs)
        self.vectors = self.add_weight(name="vectors", shape=(length, width), initializer=start)
        self.built = True

    def call(self, x):
        """Embedded text [B, T, D] -> the prompt for each row, [B, P, D]."""
        return ops.tile(ops.cast(self.vectors, x.dtype)[None], [ops.shape(x)[0], 1, 1])


def apply(model: keras.Model, stages: tuple[Stage, ...], config: PromptMethod) -> tuple[Phase, ...]:
    """Give the embeddings a prompt."""
    layers = list(model._flatten_layers())
    found = [x for x in layers if isinstance(x, Embeddings)]
    if not found:
        raise UserError("method: prompt is for hf: backbones only, and of them for texts")
    embeddings = found[0]
    vocabulary, width = embeddings.token.embeddings.shape
    start = keras.initializers.RandomNormal(stddev=0.02)
    if config.start == "vocabulary":

        def start(shape, dtype=None):
            ids = keras.random.randint([config.length], 0, vocabulary)
            return ops.cast(ops.take(embeddings.token.embeddings, ids, axis=0), dtype)

    with injection.scoped("embeddings"):
        prompt = Prompt(config.length, width, start, dtype=embeddings.dtype_policy, name="prompt")
    injection.fit(embeddings, "prompt", prompt)
    for layer in layers:
        if isinstance(layer, AttentionBias | WithoutPrompt):
            injection.fit(layer, "prompt", config.length)
    return masks.head_and(stages, "re:/prompt/[^/]+$", "prompt")


METHOD = Method("prompt", apply, identity=False, positions=lambda config: config.length)
