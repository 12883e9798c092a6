"""Single-label classification of texts or text pairs."""

from tfft.config import tasks as task_sections
from tfft.evaluation import metrics
from tfft.spec import Task
from tfft.tasks import classification

TASK = Task(
    section=task_sections.TextClassification,
    head=classification.head,
    loss=classification.loss,
    sample_weights=classification.sample_weights,
    activation="softmax",
    probabilities=metrics.softmax,
    to_logits=classification.to_logits,
    metrics=classification.compute_metrics,
    bootstrap=classification.bootstrap,
    details=classification.details,
    decode=classification.decode,
    answer=classification.answer,
    margin=classification.margin,
    summary=classification.SUMMARY,
)
