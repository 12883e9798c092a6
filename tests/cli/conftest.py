"""Fixtures of the commands: a folder to run them in, and sets that TFDS prepared."""

import numpy as np
import pytest

from tests.cli.init_command import COLORS, answer_objects, questions, texts


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A new folder, which is the current one during the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")  # TFDS registers the class, which a process may do once
def prepared(tmp_path_factory):
    """The folder of a set that TFDS prepared offline."""
    import tensorflow_datasets as tfds

    class Colors(tfds.core.GeneratorBasedBuilder):
        """Texts of colours."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=list(COLORS))
            features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "label": label})
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, _):
            return {"train": self._generate_examples(0), "test": self._generate_examples(1)}

        def _generate_examples(self, seed):
            for number, (text, color) in enumerate(texts(20, seed)):
                yield number, {"text": text, "label": color}

    folder = tmp_path_factory.mktemp("tfds")
    Colors(data_dir=folder).download_and_prepare()
    return folder


@pytest.fixture(scope="session")
def prepared_questions(tmp_path_factory):
    """The folder of a set of questions that TFDS prepared offline."""
    import tensorflow_datasets as tfds

    class ColorQuestions(tfds.core.GeneratorBasedBuilder):
        """Questions about texts of colours."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            text = tfds.features.Text()
            answers = tfds.features.Sequence({"text": text, "answer_start": np.int32})
            texts = dict.fromkeys(("id", "title", "question", "context"), text)
            features = tfds.features.FeaturesDict({**texts, "answers": answers})
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, _):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(answer_objects(questions(30)))

    folder = tmp_path_factory.mktemp("tfds")
    ColorQuestions(data_dir=folder).download_and_prepare()
    return folder
