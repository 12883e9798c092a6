"""Any number of tags for each picture."""

from tfft.evaluation import multilabel_metrics
from tfft.spec import Task
from tfft.tasks import classification, multilabel

TASK = Task(
    name="image_tagging",
    modality="image",
    columns=("image",),
    head=classification.head,
    loss=multilabel.loss,
    sample_weights=multilabel.no_weights,
    probabilities=multilabel_metrics.sigmoid,
    of_probabilities=multilabel.of_probabilities,
    metrics=multilabel.figures,
    resampled=multilabel.resampled,
    details=multilabel.details,
    decode=multilabel.decode,
    tune=multilabel.tune,
    several=True,
)
