"""What the tests of the data share."""

from tfft import preprocess
from tfft.config import parse
from tfft.data.dataset_builder import DatasetSettings, build


def build_splits(config, **changes):
    """Return the prepared splits of a config, and its preprocessing."""
    parsed = parse(config, changes={"data": changes})
    inputs = preprocess.load(parsed.model, parsed.data, parsed.task)
    return build(parsed.data, inputs, DatasetSettings(parsed.train.seed)), inputs
