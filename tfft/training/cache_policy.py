"""The decision whether to cache the features below the trainable layers, and the cached rows."""

import json
from functools import partial

from tfft.data.prepared import default_cache
from tfft.distribute import strategies
from tfft.run import Run
from tfft.training import feature_cache
from tfft.training.feature_cache import ModelSplit
from tfft.training.input_pipeline import InputPipeline
from tfft.training.phases import TrainingSchedule
from tfft.utils import console
from tfft.utils.errors import UserError

MIN_SHARE = 0.1  # of the model's products that must lie below the split for the cache to pay


def apply(run: Run, pipeline: InputPipeline, schedule: TrainingSchedule, step: int) -> None:
    """Cache the features of the frozen stages if `cache_features` is true, or is auto and it pays.

    Args:
        step: at which the phase of the schedule, or its resumed part, begins.

    Raises:
        UserError: the cache is requested and not possible.
    """
    train, model = pipeline.train, run.model
    if train.cache_features is False:
        return
    # 1. Whether the model can be split, and the cache is possible and pays.
    split = feature_cache.split_model(model)
    reason = split if isinstance(split, str) else _obstacle(run, pipeline, split, schedule, step)
    if reason or isinstance(split, str):
        if train.cache_features is True:
            raise UserError(f"train.cache_features: {reason}")
        # Not logged for full fine-tuning, where no cache is expected.
        if not isinstance(split, str) or not reason.startswith("the lowest stage is trainable"):
            console.log(f"cache: off: {reason}")
        return
    # 2. Store the features of both splits, or find them in the cache.
    size = _stored_bytes(run, pipeline, split)
    console.log(
        f"cache: on: what is below {split.lowest_upper_layer} is stored as {train.cache_dtype}, "
        f"{size / 2**20:,.1f} MiB"
    )
    config = run.config
    store = partial(
        feature_cache.store,
        split,
        dtype=train.cache_dtype,
        folder=default_cache(config.data.cache_dir),
    )
    # The features depend on more than the weights below: the description holds what is a constant
    # in the graph (scaling, mean, epsilon).
    pooling = getattr(config.task, "pooling", None)  # tasks of tokens have none
    constants = [dict(run.backbone.description), run.backbone.fingerprint, pooling]
    key = f"{config.distribute.precision} {json.dumps(constants, sort_keys=True, default=str)}"
    # Augmented images differ from epoch to epoch: a fixed number of variants is stored.
    if config.augmentation.any:
        augmented = f"{key} {config.augmentation.model_dump_json()} {train.seed}"
        variants = [
            store(pipeline.data.train, pipeline.train_rows.variant(n), key=f"{augmented} {n}")
            for n in range(config.augmentation.variants or 1)
        ]
        pipeline.train_rows = feature_cache.CyclingCache(variants, pipeline.plan.per_epoch)
    else:
        pipeline.train_rows = store(pipeline.data.train, pipeline.train_rows, key=key)
    if pipeline.data.validation is not None and pipeline.validation_rows is not None:
        pipeline.validation_rows = store(
            pipeline.data.validation, pipeline.validation_rows, key=key
        )
    # 3. From here on the model takes the features in place of its inputs.
    model.configure(upper_part=split.upper_part)


def _obstacle(
    run: Run, pipeline: InputPipeline, split: ModelSplit, schedule: TrainingSchedule, step: int
) -> str:
    """Return why the features are not cached; empty where they are."""
    train = pipeline.train
    if strategies.workers().count > 1:
        return "each of several workers would need its own copy"
    if run.config.regularization.adversarial is not None:
        return "adversarial training changes the embeddings"
    if run.config.augmentation.any and run.config.augmentation.variants is None:
        return "augmentation changes the images in every epoch (augmentation.variants: 8 stores 8)"
    # Requested: only what makes the cache impossible counts, not whether it pays.
    if train.cache_features is True:
        return ""
    if split.share < MIN_SHARE:
        return (
            f"what is below {split.lowest_upper_layer} computes {split.share:.0%} of the model only"
        )
    # Of the whole phase, wherever in it a resumed run begins: the decision must be the same.
    epochs = (schedule.until(step) - schedule.at(step).start) / pipeline.plan.per_epoch
    if epochs < 2:
        return f"it would be read for {epochs:.1f} epochs only"
    size = _stored_bytes(run, pipeline, split)
    free = feature_cache.free_bytes(default_cache(run.config.data.cache_dir))
    if size > free:
        return f"it needs {size / 2**30:,.1f} GiB of disk; {free / 2**30:,.1f} GiB may be taken"
    return ""


def _stored_bytes(run: Run, pipeline: InputPipeline, split: ModelSplit) -> int:
    variants = run.config.augmentation.variants or 1
    validation = pipeline.data.validation
    datasets = [pipeline.data.train] * variants + ([] if validation is None else [validation])
    return feature_cache.size(split, datasets, run.config.train.cache_dtype)
