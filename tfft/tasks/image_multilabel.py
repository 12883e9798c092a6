"""Multi-label classification of images: any number of labels per image."""

from tfft.evaluation import multilabel_metrics
from tfft.spec import Task
from tfft.tasks import classification, multilabel

TASK = Task(
    name="image_multilabel",
    modality="image",
    columns=("image",),
    head=classification.head,
    loss=multilabel.loss,
    sample_weights=multilabel.no_weights,
    probabilities=multilabel_metrics.sigmoid,
    to_logits=multilabel.to_logits,
    metrics=multilabel.compute_metrics,
    bootstrap=multilabel.bootstrap,
    details=multilabel.details,
    decode=multilabel.decode,
    fit_thresholds=multilabel.fit_thresholds,
    multi_label=True,
)
