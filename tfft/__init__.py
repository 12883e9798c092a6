"""tfft: fine-tune pretrained models in TensorFlow and Keras 3. Importing it loads no TensorFlow."""

__version__ = "0.1.0"
