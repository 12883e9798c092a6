"""Any number of tags for each picture."""

from tfft import tag_metrics
from tfft.spec import Task
from tfft.tasks import classification, tagging

TASK = Task(
    name="image_tagging",
    modality="image",
    columns=("image",),
    head=classification.head,
    loss=tagging.loss,
    sample_weights=tagging.no_weights,
    probabilities=tag_metrics.sigmoid,
    of_probabilities=tagging.of_probabilities,
    metrics=tagging.figures,
    resampled=tagging.resampled,
    details=tagging.details,
    decode=tagging.decode,
    tune=tagging.tune,
    several=True,
)
