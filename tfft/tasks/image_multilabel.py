"""Multi-label classification of images: any number of labels per image."""

from tfft.config import tasks as task_sections
from tfft.evaluation import multilabel_metrics
from tfft.spec import Task
from tfft.tasks import classification, multilabel

TASK = Task(
    section=task_sections.ImageMultilabel,
    head=classification.head,
    loss=multilabel.loss,
    sample_weights=multilabel.no_weights,
    activation="sigmoid",
    probabilities=multilabel_metrics.sigmoid,
    to_logits=multilabel.to_logits,
    metrics=multilabel.compute_metrics,
    bootstrap=multilabel.bootstrap,
    details=multilabel.details,
    decode=multilabel.decode,
    answer=multilabel.answer,
    margin=multilabel.margin,
    summary=multilabel.SUMMARY,
    fit_thresholds=multilabel.fit_thresholds,
)
