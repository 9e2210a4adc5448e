"""Fixtures that all rooms of the learning side share."""

from __future__ import annotations

from pathlib import Path

import pytest
from dataset_files import write_dataset


@pytest.fixture(scope="session")
def dataset_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset of three training entries, one of validation, two of test; two frames each."""
    splits = {"1aaa": "train", "2bbb": "train", "3ccc": "train", "4ddd": "validation", "5eee": "test", "6fff": "test"}
    return write_dataset(tmp_path_factory.mktemp("dataset") / "dataset.h5", splits)
