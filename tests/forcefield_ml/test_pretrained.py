"""The models that ship: small, loadable by name, and honest about where they come from."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import forcefield_ml
from data_pipeline.config import PipelineConfig
from data_pipeline.config import load_config as load_data_config
from forcefield_ml import pretrained
from forcefield_ml.config import load_config
from forcefield_ml.errors import ModelFileError
from forcefield_ml.training.config import TrainingConfig

MAX_BYTES = 5_000_000


@pytest.mark.parametrize("name", pretrained.names())
def test_ships_with_card_and_recipe(name: str) -> None:
    """A model is at most 5 MB; its card holds sequences, data hash and metrics; its recipe is the card's."""
    path = pretrained.path(name)
    assert path.stat().st_size <= MAX_BYTES
    card = forcefield_ml.load(name).card
    training = card["training"]
    assert len(training["dataset_sha256"]) == 64 and training["n_batches"] > 0
    assert set(training["sequences"]) >= set(training["entries"]) and training["entries"]
    assert card["metrics"]["tensor"] < card["metrics"]["naive"]["tensor"]
    recipe = load_config(TrainingConfig, path.with_suffix(".yaml"))
    told = training["recipe"]
    for key in ("preset", "learning_rate", "ema", "targets_per_batch", "seed", "delta"):
        assert told[key] == getattr(recipe, key), key
    recipe_text = path.with_suffix(".yaml").read_text(encoding="utf-8")
    made = re.findall(r"data-pipeline run forcefield_ml/pretrained/(\S+-data\.yaml)", recipe_text)
    data = load_data_config(pretrained.FOLDER / made[0])
    if isinstance(data, PipelineConfig):
        assert set(training["entries"]) <= set(data.select.ids or training["entries"])
    else:  # RNA-Puzzles, of which the paper learns the first thirteen
        assert {entry.split("-")[0] for entry in training["entries"]} == {f"rp{k:02d}" for k in range(1, 14)}


def test_every_recipe_is_one() -> None:
    """Each YAML beside the models is the configuration of a command, and named by the recipe of a model."""
    told = "".join(
        pretrained.path(name).with_suffix(".yaml").read_text(encoding="utf-8") for name in pretrained.names()
    )
    for path in sorted(pretrained.FOLDER.glob("*.yaml")):
        load: Any = load_data_config if path.stem.endswith("-data") else partial(load_config, TrainingConfig)
        load(path)
        assert f"forcefield_ml/pretrained/{path.name}" in told


@pytest.mark.parametrize("name", pretrained.names())
def test_licence_names_what_it_learnt_from(name: str) -> None:
    """PDB entries for forces; for refinement, models by many groups as well."""
    told = pretrained.licence(name)
    assert told.startswith("MIT") and "CC0" in told
    assert ("RNA-Puzzles" in told) == (forcefield_ml.load(name).card["predicts"] == "refinement")


def test_names_and_paths(tmp_path: Path) -> None:
    """A name resolves to the shipped file, a path stays what it is, an unknown name is answered with the known."""
    assert "amber14-fast" in pretrained.names()
    assert pretrained.resolve("amber14-fast") == pretrained.path("amber14-fast")
    assert pretrained.resolve(tmp_path / "model.pt") == tmp_path / "model.pt"
    with pytest.raises(ModelFileError, match="Did you mean 'amber14-fast'"):
        forcefield_ml.load("amber14-fst")


def test_a_folder_of_the_same_name_does_not_hide_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training run's folder amber14-fast in the working directory is no model; the shipped file is meant."""
    (tmp_path / "amber14-fast").mkdir()
    monkeypatch.chdir(tmp_path)
    assert pretrained.resolve("amber14-fast") == pretrained.path("amber14-fast")
