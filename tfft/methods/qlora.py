"""LoRA on frozen kernels of 8 or 4 bits.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs". 8 bits: one scale for each
output, symmetric; 4 bits: two codes a byte, one scale for each output and group of inputs (uniform
levels; the authors' are those of a normal distribution). The kernel is made anew from its codes in
the forward and in the backward pass, and is never kept in full.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfft.config.methods import QloraMethod
from tfft.methods import lora
from tfft.model import injection, masks
from tfft.spec import Method, Phase, Stage


class Codes(keras.layers.Layer):
    """A kernel [inputs, outputs] in few bits."""

    def __init__(self, kernel: np.ndarray, bits: int, group: int, **kwargs):
        super().__init__(**kwargs)
        self._bits, self._shape = bits, kernel.shape
        self._group = group if bits == 4 else kernel.shape[0]
        codes, scales = encode(kernel, bits, self._group)
        self.codes = self.add_weight(
            name="codes",
            shape=codes.shape,
            dtype=str(codes.dtype),
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(codes, dtype),
            trainable=False,
        )
        self.scales = self.add_weight(
            name="scales",
            shape=scales.shape,
            dtype="float32",
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(scales, dtype),
            trainable=False,
            autocast=False,  # in mixed precision the codes are of no use with rounded scales
        )
        self.built = True

    def kernel(self):
        """The kernel that the codes stand for, float32 [inputs, outputs]."""
        return decode(
            ops.convert_to_tensor(self.codes), self.scales, self._bits, self._group, self._shape
        )

    def product(self, x, training):
        """[..., inputs] -> [..., outputs]; its gradient decodes the kernel anew."""
        codes, scales = ops.convert_to_tensor(self.codes), ops.convert_to_tensor(self.scales)
        settings = self._bits, self._group, self._shape

        @ops.custom_gradient
        def product(x):
            kernel = ops.cast(decode(_after(x, codes), scales, *settings), x.dtype)

            def gradient(*args, upstream=None):
                upstream = args[0] if upstream is None else upstream
                kernel = ops.cast(
                    decode(_after(upstream, codes), scales, *settings), upstream.dtype
                )
                return tf.linalg.matmul(upstream, kernel, transpose_b=True)

            return ops.matmul(x, kernel), gradient

        return product(x)


def _after(needed, codes):
    """The codes, read once `needed` is there.

    Else TensorFlow decodes every kernel as the step begins, since nothing keeps it from that, and
    takes the forward pass's kernel in the backward pass, since it is the same computation: all
    kernels would be there in full.
    """
    with tf.control_dependencies([needed]):
        return tf.identity(codes)


def encode(kernel: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales: int8 [inputs, outputs] for 8 bits; for 4, uint8 [inputs / 2, outputs].

    Scales are float32 [groups, outputs]; the last group may be shorter. With 4 bits an odd number
    of inputs is filled up with a row of zeros.
    """
    levels = 127 if bits == 8 else 7
    inputs, outputs = kernel.shape
    groups = -(-inputs // group)
    padded = np.zeros((groups * group, outputs), np.float32)
    padded[:inputs] = kernel
    parts = padded.reshape(groups, group, outputs)
    scales = np.abs(parts).max(axis=1) / levels
    safe = np.where(scales == 0, 1, scales)[:, None, :]
    codes = np.rint(parts / safe).reshape(-1, outputs)[:inputs].astype(np.int8)
    if bits == 8:
        return codes, scales.astype(np.float32)
    if inputs % 2:
        codes = np.concatenate([codes, np.zeros((1, outputs), np.int8)])
    low, high = (codes[0::2] + 8).astype(np.uint8), (codes[1::2] + 8).astype(np.uint8)
    return low | (high << 4), scales.astype(np.float32)


def decode(codes, scales, bits: int, group: int, shape: tuple[int, int]):
    """`encode`, backwards, as float32 [inputs, outputs]."""
    inputs, outputs = shape
    if bits == 4:
        # As bytes for as long as can be: what is decoded here is there beside the kernel.
        pair = ops.stack([ops.bitwise_and(codes, 15), ops.right_shift(codes, 4)], axis=1)
        codes = ops.reshape(pair, [-1, outputs])[:inputs]
    values = ops.cast(codes, "float32")
    if bits == 4:
        values -= 8
    if inputs % group:  # the last group is shorter
        return values * ops.repeat(scales, group, axis=0)[:inputs]
    grouped = ops.reshape(values, [-1, group, outputs]) * scales[:, None, :]
    return ops.reshape(grouped, [inputs, outputs])


def apply(model: keras.Model, stages: tuple[Stage, ...], config: QloraMethod) -> tuple[Phase, ...]:
    """Quantize, then attach LoRA to every target."""
    targets = injection.chosen(model, config.quantize, "method.quantize")
    for layer in {id(t.layer): t.layer for t in targets}.values():
        injection.replace_kernel(
            layer, lambda kernel: Codes(kernel, config.bits, config.group, name="quantized")
        )
    injection.attach(
        injection.chosen(model, config.targets, "method.targets"),
        lambda target: lora.LowRank(
            config.rank, lora.scale(config), config.dropout, dtype=target.policy, name="lora"
        ),
    )
    return masks.head_and(stages, "re:/lora/[^/]+$", "qlora")


METHOD = Method("qlora", apply, identity=False)
