"""The configuration: strict, with presets, with errors that help."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from forcefield_ml.config import load_config, parse_config
from forcefield_ml.errors import ConfigError
from forcefield_ml.training.config import PRESETS, TrainingConfig
from forcefield_ml.training.module import learning_rate

BASE = {"dataset": "d.h5", "output": "run", "model": {"architecture": "fast"}, "max_batches": 100}


def test_preset_gives_way_to_what_is_written():
    """The paper's preset has the paper's delta and learning rate; a key beside it wins."""
    config = parse_config(TrainingConfig, BASE | {"preset": "paper"})
    assert (config.delta, config.learning_rate) == (10.0, 0.1)
    config = parse_config(TrainingConfig, BASE | {"preset": "paper", "learning_rate": 0.02})
    assert (config.delta, config.learning_rate) == (10.0, 0.02)
    assert parse_config(TrainingConfig, BASE).delta == PRESETS["thermal"]["delta"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"learning_rat": 0.1}, "Did you mean 'learning_rate'"),
        ({"preset": "papr"}, "Did you mean 'paper'"),
        ({"delta": -1}, "delta is -1"),
        ({"max_batches": None}, "max_minutes"),
        ({"targets_per_batch": 2, "frames_per_batch": 3}, "frames_per_batch"),
        ({"dataset": None}, "dataset is None"),
        ({"pairs_per_batch": 1000, "targets_per_batch": 10}, "targets_per_batch beside it"),
        ({"pairs_per_batch": 1000, "frames_per_batch": 2}, "frames_per_batch beside it"),
        ({"precision": "fp16"}, "precision is 'fp16'"),
    ],
)
def test_what_is_wrong_is_named(values, message):
    """Each mistake is named with what is allowed."""
    with pytest.raises(ConfigError, match=message):
        parse_config(TrainingConfig, BASE | values)


def test_file_and_overrides(tmp_path: Path):
    """Values come from the file, options of the command win, None means as in the file."""
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(BASE))
    config = load_config(TrainingConfig, path, max_batches=7, output=None)
    assert config.max_batches == 7 and config.output == Path("run")
    for text, message in (("- a", "list"), ("a: [", "YAML"), ("", "NoneType")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            load_config(TrainingConfig, path)
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(TrainingConfig, tmp_path / "none.yaml")


def test_learning_rate_schedules():
    """It warms up, keeps, or falls to the final part of its highest value."""
    config = parse_config(TrainingConfig, BASE | {"learning_rate": 2.0, "warmup_batches": 4, "schedule": "cosine"})
    assert [learning_rate(config, n, 0.0) for n in range(5)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert learning_rate(config, 50, 0.5) == pytest.approx(2.0 * 0.505)
    assert learning_rate(config, 99, 1.0) == pytest.approx(0.02)
    linear = config.model_copy(update={"schedule": "linear"})
    assert learning_rate(linear, 50, 0.25) == pytest.approx(2.0 * (1 - 0.99 * 0.25))
    constant = config.model_copy(update={"schedule": "constant"})
    assert learning_rate(constant, 99, 1.0) == 2.0
