"""Any number of tags for each text, or for each pair of texts."""

from dataclasses import replace

from tfft.tasks import image_tagging

TASK = replace(
    image_tagging.TASK, name="text_tagging", modality="text", columns=("text", "text_pair")
)
