"""A tripeptide in a small box of water, prepared by the pipeline, and models of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.systems.prepare import Prepared, prepare

FRAGMENT = Path(__file__).parents[1] / "deploy" / "data" / "1aie_351_353.pdb"


@pytest.fixture(scope="session")
def peptide_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared system as a file."""
    path = tmp_path_factory.mktemp("peptide") / "peptide.cif"
    prepare(FRAGMENT, path, padding=0.3, seed=1)
    return path


@pytest.fixture(scope="session")
def peptide(peptide_file: Path) -> Prepared:
    """The prepared system."""
    from data_pipeline.systems.prepare import read_prepared

    return read_prepared(peptide_file)
