"""One small protein, crambin, prepared once for all tests of the back end."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from data_pipeline.systems.prepare import Prepared, prepare
from data_pipeline.systems.sample import Frames, relax, sample_thermal

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
    from data_pipeline.systems.prepare import read_prepared

    return read_prepared(crambin_file)


@pytest.fixture(scope="session")
def tripeptide(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The first three residues of crambin (THR-THR-CYS) in 267 atoms, for whatever is dear to compute."""
    folder = tmp_path_factory.mktemp("tripeptide")
    text = gzip.decompress((MIRROR / "1crn.pdb.gz").read_bytes()).decode()
    atoms = [line for line in text.splitlines() if line.startswith("ATOM") and int(line[22:26]) <= 3]
    (folder / "ttc.pdb").write_text("\n".join([*atoms, "TER", "END", ""]))
    return prepare(folder / "ttc.pdb", folder / "ttc.cif", padding=0.4, box_shape="cube", seed=5)


@pytest.fixture(scope="session")
def tripeptide_frames(tripeptide: Prepared) -> Frames:
    """Two thermal snapshots of the tripeptide."""
    start = relax(tripeptide, tolerance=100.0, cutoff=0.6)
    return sample_thermal(tripeptide, start, n_frames=2, equilibration=0.4, interval=0.2, cutoff=0.6, seed=2)
