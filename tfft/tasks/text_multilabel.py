"""Any number of tags for each text, or for each pair of texts."""

from dataclasses import replace

from tfft.tasks import image_multilabel

TASK = replace(
    image_multilabel.TASK, name="text_multilabel", modality="text", columns=("text", "text_pair")
)
