"""One small protein, crambin, prepared once for all tests of the back end."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipeline.prepare import Prepared, prepare

MIRROR = Path(__file__).parents[2] / "examples" / "demo" / "mirror"


@pytest.fixture(scope="session")
def mirror() -> Path:
    return MIRROR


@pytest.fixture(scope="session")
def crambin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crambin from its PDB file, in the smallest box."""
    out = tmp_path_factory.mktemp("prepared") / "1crn.cif"
    prepare(MIRROR / "1crn.pdb.gz", out, padding=0.7, box_shape="dodecahedron", seed=5)
    return out


@pytest.fixture(scope="session")
def crambin(crambin_file: Path) -> Prepared:
    from data_pipeline.prepare import read_prepared

    return read_prepared(crambin_file)
