"""Multi-label classification of texts or text pairs."""

from dataclasses import replace

from tfft.tasks import image_multilabel

TASK = replace(
    image_multilabel.TASK, name="text_multilabel", modality="text", columns=("text", "text_pair")
)
