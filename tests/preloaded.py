"""Modules that the fork server of `tests.processes` imports for all commands.

Importing them starts no thread, so that the server may fork.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras_tuner  # noqa: F401
import matplotlib.backends.backend_svg
import matplotlib.figure  # noqa: F401
import tensorflow_text  # noqa: F401
from transformers import AutoTokenizer  # noqa: F401

import tfft.train  # noqa: F401
