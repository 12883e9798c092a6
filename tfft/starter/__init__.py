"""Write a first config for data at hand by looking at their first rows.

Loads TensorFlow for TFDS alone.

`head` reads the rows, `roles` decides which column is which, `tagged` recognises words with tags
and `questions` those about contexts, `splits` finds the other splits, `choices` chooses the
backbone and the training, and `draft` writes the YAML: `data_section` the section `data`, and
`page` the comments.
"""

from tfft.starter.draft import Draft, draft
from tfft.starter.request import Request, source_of

__all__ = ["Draft", "Request", "draft", "source_of"]
