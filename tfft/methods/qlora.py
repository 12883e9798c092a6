"""QLoRA: LoRA on frozen kernels that are quantized to 8 or 4 bits.

Dettmers et al. 2023, "QLoRA: Efficient Finetuning of Quantized LLMs". 8 bits: one scale per output,
symmetric. 4 bits: two codes per byte, one scale per output and group of inputs, with uniform levels
where the authors use quantiles of a normal distribution. The kernel is decoded from its codes in
the forward pass and again in the backward pass, and is never stored.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tfft.config.methods import QloraMethod
from tfft.methods import lora
from tfft.model import injection, masks
from tfft.spec import Method, Phase, Stage


class QuantizedKernel(keras.layers.Layer):
    """A frozen kernel [inputs, outputs] in 8 or 4 bits.

    Args:
        kernel: float32 [inputs, outputs].
        bits: 8 or 4.
        group: inputs per scale with 4 bits; unused with 8, which have one scale per output.
        **kwargs: of the Keras layer.
    """

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
            autocast=False,  # rounding the scales in mixed precision would distort the kernel
        )
        self.built = True

    def kernel(self):
        """Decode the kernel, float32 [inputs, outputs]."""
        return decode(
            ops.convert_to_tensor(self.codes), self.scales, self._bits, self._group, self._shape
        )

    def product(self, x, training):
        """Return x W for [..., inputs]; the gradient decodes the kernel a second time."""
        codes, scales = ops.convert_to_tensor(self.codes), ops.convert_to_tensor(self.scales)
        settings = self._bits, self._group, self._shape

        @ops.custom_gradient
        def product(x):
            kernel = ops.cast(decode(_read_after(x, codes), scales, *settings), x.dtype)

            def gradient(*args, upstream=None):
                # `keras.ops.custom_gradient`: TensorFlow passes the upstream gradient by position.
                upstream = args[0] if upstream is None else upstream
                kernel = ops.cast(
                    decode(_read_after(upstream, codes), scales, *settings), upstream.dtype
                )
                # The gradient of x alone; the codes are integers and have none.
                return tf.linalg.matmul(upstream, kernel, transpose_b=True)

            return ops.matmul(x, kernel), gradient

        return product(x)


def _read_after(tensor, codes):
    """Return the codes with a control dependency on `tensor`.

    Without it TensorFlow may decode every kernel when the step begins. It would also reuse the
    kernel of the forward pass in the backward pass, as a common subexpression. Either way all
    decoded kernels would be in memory at once.
    """
    with tf.control_dependencies([tensor]):
        return tf.identity(codes)


def encode(kernel: np.ndarray, bits: int, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantize a kernel.

    Args:
        kernel: float32 [inputs, outputs].
        bits: 8 or 4.
        group: inputs per scale; the last group may be shorter.

    Returns:
        Codes and scales. Codes are int8 [inputs, outputs] with 8 bits, and uint8
        [ceil(inputs / 2), outputs] with 4; an odd number of inputs is padded by a row of zeros.
        Scales are float32 [groups, outputs].
    """
    # Symmetric: -128 and -8 are not used, so 0 is exact and needs no zero point.
    levels = 127 if bits == 8 else 7
    inputs, outputs = kernel.shape
    groups = -(-inputs // group)
    # Zeros in the last, shorter group do not change its largest value.
    padded = np.zeros((groups * group, outputs), np.float32)
    padded[:inputs] = kernel
    grouped = padded.reshape(groups, group, outputs)
    scales = np.abs(grouped).max(axis=1) / levels
    divisors = np.where(scales == 0, 1, scales)[:, None, :]  # [groups, 1, outputs]
    codes = np.rint(grouped / divisors).reshape(-1, outputs)[:inputs].astype(np.int8)
    if bits == 8:
        return codes, scales.astype(np.float32)
    if inputs % 2:
        codes = np.concatenate([codes, np.zeros((1, outputs), np.int8)])
    # Two inputs in a byte, shifted to 1..15: the even input in the low bits.
    low, high = (codes[0::2] + 8).astype(np.uint8), (codes[1::2] + 8).astype(np.uint8)
    return low | (high << 4), scales.astype(np.float32)


def decode(codes, scales, bits: int, group: int, shape: tuple[int, int]):
    """Return the kernel of the codes and scales of `encode`, float32 [inputs, outputs]."""
    inputs, outputs = shape
    if bits == 4:
        # Unpacked as bytes and cast last: this array is in memory together with the kernel.
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
    """Quantize kernels, attach LoRA to every target; train the adapters and the head."""
    targets = injection.select_targets(model, config.quantize, "method.quantize")
    # A fused layer has several targets and one kernel, so layers are taken once.
    for layer in {id(t.layer): t.layer for t in targets}.values():
        injection.replace_kernel(
            layer,
            lambda kernel: QuantizedKernel(kernel, config.bits, config.group, name="quantized"),
        )
    injection.attach(
        injection.select_targets(model, config.targets, "method.targets"),
        lambda target: lora.LowRank(
            config.rank, lora.scale(config), config.dropout, dtype=target.policy, name="lora"
        ),
    )
    return masks.head_and_matches(stages, "re:/lora/[^/]+$", "qlora")


# Rounding the kernels changes the output before the first step.
METHOD = Method("qlora", apply, identity=False)
