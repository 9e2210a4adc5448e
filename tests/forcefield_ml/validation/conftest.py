"""The page of the model that ships, made once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forcefield_ml import pretrained
from forcefield_ml.config import parse_config
from forcefield_ml.validation.validate import ValidationConfig, validate

FRAGMENT = Path(__file__).parents[1] / "deploy" / "data" / "1aie_351_353.pdb"


@pytest.fixture(scope="session")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The page of the model that ships, on two thermal frames of a fragment of three residues in water."""
    folder = tmp_path_factory.mktemp("shipped")
    values = {"model": pretrained.path("amber14-fast"), "input": FRAGMENT, "output": folder}
    html, plain = validate(parse_config(ValidationConfig, values), lambda line: None)
    return html, json.loads(plain.read_text())
