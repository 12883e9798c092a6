"""Prompt tuning: trainable vectors before the embedded text.

Lester, Al-Rfou & Constant 2021, "The Power of Scale for Parameter-Efficient Prompt Tuning". The
vectors take the first positions. The features leave out the outputs at these positions, so their
first token is still the first of the text.
"""

import keras
from keras import ops

from tfft.backbones.families.encoder import AttentionBias, WithoutPrompt
from tfft.backbones.families.layers import Embeddings
from tfft.config.methods import PromptMethod
from tfft.model import injection, masks
from tfft.spec import Method, Phase, Stage
from tfft.utils import keras_internals
from tfft.utils.errors import UserError


class Prompt(keras.layers.Layer):
    """Trainable vectors [P, D] of a prompt.

    Args:
        length: P, number of vectors.
        width: D, width of the embeddings.
        initializer: Keras initializer of the vectors.
        **kwargs: of the Keras layer.
    """

    def __init__(self, length: int, width: int, initializer, **kwargs):
        super().__init__(**kwargs)
        self.vectors = self.add_weight(
            name="vectors", shape=(length, width), initializer=initializer
        )
        self.built = True

    def call(self, x):
        """Repeat the prompt for each row of the embedded text [B, T, D]: [B, P, D]."""
        return ops.tile(ops.cast(self.vectors, x.dtype)[None], [ops.shape(x)[0], 1, 1])


def apply(model: keras.Model, stages: tuple[Stage, ...], config: PromptMethod) -> tuple[Phase, ...]:
    """Install a prompt in the embeddings; train the prompt and the head.

    Raises:
        UserError: the model has no embeddings of tfft's own architectures.
    """
    layers = keras_internals.flat_layers(model)
    embedding_layers = [x for x in layers if isinstance(x, Embeddings)]
    if not embedding_layers:
        raise UserError("method: prompt needs a text backbone loaded with hf:")
    embeddings = embedding_layers[0]
    vocabulary, width = embeddings.token.embeddings.shape
    initializer = keras.initializers.RandomNormal(stddev=0.02)
    if config.start == "vocabulary":

        def initializer(shape, dtype=None):
            # Lester et al., section 3.2: sampled embeddings are a better start than random vectors.
            ids = keras.random.randint([config.length], 0, vocabulary)
            return ops.cast(ops.take(embeddings.token.embeddings, ids, axis=0), dtype)

    # Beside the table of tokens, so that the prompt belongs to the stage of the embeddings.
    path = embeddings.token.embeddings.path.removesuffix("/token/embeddings")
    with injection.variable_scope(path):
        prompt = Prompt(
            config.length, width, initializer, dtype=embeddings.dtype_policy, name="prompt"
        )
    injection.install(embeddings, "prompt", prompt)
    # The other layers need the length only: the mask grows by it, the features leave it out.
    for layer in layers:
        if isinstance(layer, AttentionBias | WithoutPrompt):
            injection.install(layer, "prompt", config.length)
    return masks.head_and_matches(stages, "re:/prompt/[^/]+$", "prompt")


METHOD = Method("prompt", apply, identity=False, positions=lambda config: config.length)
