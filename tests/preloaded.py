"""What the commands of `tests.processes` find imported; it starts no thread, so a fork is safe."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras_tuner  # noqa: F401
import tensorflow_text  # noqa: F401
import transformers  # noqa: F401
