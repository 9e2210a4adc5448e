"""`refine` and its command, from files to files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pytest
import torch
from rna_files import bent, helix, turn, write_cif, write_pdb
from typer.testing import CliRunner

from forcefield_ml import cli, models
from forcefield_ml.deploy.model import load
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import make_card
from forcefield_ml.errors import ForceModeError, TopologyError
from forcefield_ml.refinement import Refinement, Settings, refine
from forcefield_ml.refinement.picture import trace_of, vector_field
from forcefield_ml.refinement.predictor import check_elements
from forcefield_ml.refinement.scores import Native, find_native
from forcefield_ml.refinement.structure_file import read_structure_file
from forcefield_ml.validation import figures

TINY = {"architecture": "fast", "n_channels": 4, "n_layers": 2, "n_basis": 6, "n_units": 4, "n_first_units": 4}


class Files:
    """A bent strand, the straight one elsewhere, and what tells the way from one to the other."""

    def __init__(self, folder: Path) -> None:
        self.candidate = write_pdb(folder / "candidate.pdb", bent(helix(6)))
        self.native = write_pdb(folder / "native.pdb", helix(6) @ turn(1).T + 20)
        self.truth: Native = find_native(read_structure_file(self.candidate).structure, self.native)[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Return the files of a strand."""
    return Files(tmp_path_factory.mktemp("strand"))


def exported(path: Path, predicts: str, **config: Any) -> Path:
    """Write a model.pt with random weights."""
    torch.manual_seed(0)
    model = models.build({**TINY, "elements": [6, 7, 8, 15], **config}).eval()
    return bundle.write(model, make_card(model, predicts=predicts), path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model.pt that says it predicts refinement."""
    return exported(tmp_path_factory.mktemp("model") / "model.pt", "refinement")


def test_true_vectors_are_told_as_better(files: Files, tmp_path: Path):
    done = refine(files.truth.vectors, files.candidate, files.native, Settings(steps=4))
    assert done.report["verdict"] == "better"
    assert {"rmsd", "local_rmsd", "to_go", "lddt"} <= set(done.report["better"])
    assert not {"rmsd", "local_rmsd", "to_go", "lddt"} & set(done.report["worse"])
    assert done.report["outcome"][1].startswith("Nearer to the native: RMSD ")
    written = done.write(tmp_path / "out")
    assert sorted(path.name for path in written.values()) == ["refined.pdb", "report.html", "report.json"]
    again = refine(np.zeros_like, written["structure"], files.native).report["before"]
    for name in ("rmsd", "local_rmsd", "to_go"):
        assert again[name] == pytest.approx(done.report["after"][name], abs=2e-3)
    assert json.loads(written["json"].read_text()) == json.loads(json.dumps(done.report))


def test_the_wrong_way_is_told_as_worse(files: Files, tmp_path: Path):
    """Moves away from the native that by the model's own measure look fine: the report, the page, the words say it."""
    first = files.truth.vectors(read_structure_file(files.candidate).start)
    fading = [1.0]

    def wrong(positions: np.ndarray) -> np.ndarray:
        fading[0] *= 0.95
        return -fading[0] * first

    done = refine(wrong, files.candidate, files.native)
    assert done.report["verdict"] == "worse"
    assert {"rmsd", "local_rmsd", "lddt"} <= set(done.report["worse"])
    assert "WORSE: farther from the native than the input: RMSD " in done.report["outcome"][1]
    page = done.write(tmp_path / "out")["html"].read_text()
    assert "WORSE: farther from the native" in page
    assert 'class="verdict good"' not in page and '<span class="bad">worse</span>' in page


def test_the_native_does_not_steer(files: Files):
    """With and without it the result is the same; without it, nothing is claimed."""
    settings = Settings(steps=3)
    blind = refine(files.truth.vectors, files.candidate, None, settings)
    seeing = refine(files.truth.vectors, files.candidate, files.native, settings)
    assert np.array_equal(blind.positions, seeing.positions)
    assert blind.report["verdict"] == "unknown"
    assert "is not known without --native" in blind.report["outcome"][1]
    assert "rmsd" not in blind.report["after"]


def test_nothing_to_move(files: Files, tmp_path: Path):
    done = refine(np.zeros_like, files.candidate, files.native)
    assert done.report["verdict"] == "unchanged"
    assert done.report["outcome"][0] == "Nothing was moved: the model sees nothing left to move."
    assert done.write(tmp_path)["structure"].read_bytes() == files.candidate.read_bytes()


def test_clashes_are_told_without_a_native(tmp_path: Path):
    """Strands driven into each other, a step short of too many clashes: WORSE in geometry."""
    lines = write_pdb(tmp_path / "one.pdb", helix(2)).read_text().splitlines()[:40]
    other = write_pdb(tmp_path / "two.pdb", helix(2) + np.array([19.0, 0, 0])).read_text().splitlines()[:40]
    source = tmp_path / "pair.pdb"
    source.write_text("\n".join([*lines, "TER", *(line[:21] + "B" + line[22:] for line in other), "END"]))
    sign = np.where(np.arange(80) < 40, 1.0, -1.0)[:, None]
    calls = [1.0]

    def together(positions: np.ndarray) -> np.ndarray:
        calls[0] *= 0.99
        return sign * [calls[0], 0.0, 0.0]

    report = refine(together, source, None, Settings(steps=100, max_step=0.01, keep_geometry=False)).report
    assert report["stopped"] == "geometry"
    assert report["after"]["clashes"] > report["before"]["clashes"]
    assert report["worse"] == ["clashes"]
    assert report["outcome"][-1].startswith("WORSE in geometry: clashes ")


def test_a_model_moves_a_structure(files: Files, model: Path, tmp_path: Path):
    """The command end to end: PDB in, PDB and page out, with the model's own vectors in it."""
    command = ["refine", model, files.candidate, "-o", tmp_path / "out", "--native", files.native, "--steps", 2]
    result = CliRunner().invoke(cli.app, [str(word) for word in command], catch_exceptions=False)
    assert result.exit_code == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["model"] == {"file": str(model), "sha256": load(model).sha256}
    for sentence in report["outcome"]:
        assert sentence in result.output
    species = read_structure_file(files.candidate).structure.species
    start = read_structure_file(files.candidate).start
    vectors = load(model).evaluator(torch.tensor(species.astype(np.int64)))(torch.tensor(start), None).forces
    assert vectors is not None
    assert report["steps"][0]["predicted"] == pytest.approx(float(10 * vectors.norm(dim=1).mean()), rel=1e-4)
    page = (tmp_path / "out/report.html").read_text()
    assert page.count('<svg class="plot"') >= 8
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_mmcif_and_json(files: Files, model: Path, tmp_path: Path):
    source = write_cif(tmp_path / "strand.cif", bent(helix(4)))
    command = ["refine", model, source, "-o", tmp_path / "out", "--steps", 1, "--json"]
    result = CliRunner().invoke(cli.app, [str(word) for word in command], catch_exceptions=False)
    report = json.loads(result.stdout)
    assert report["format"] == "forcefield-ml-refinement-1"
    assert len(report["steps"]) == 2
    assert gemmi.read_structure(str(tmp_path / "out/refined.cif"))[0].count_atom_sites() == 80


def test_a_model_of_forces_is_refused(files: Files, tmp_path: Path):
    forces = exported(tmp_path / "forces.pt", "total")
    with pytest.raises(ForceModeError, match=r"predicts 'total', which are forces .* card says 'refinement'"):
        refine(forces, files.candidate)


def test_unknown_elements_are_refused(files: Files, tmp_path: Path):
    """A model without phosphorus cannot refine RNA; the atoms are named."""
    poor = exported(tmp_path / "poor.pt", "refinement", elements=[6, 7, 8])
    with pytest.raises(TopologyError, match=r"does not know the element P of A:C1:P, .* and 1 more; .* C, N, O"):
        refine(poor, files.candidate)
    check_elements([6, 7, 8, 15], read_structure_file(files.candidate).structure)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"--fraction": "2"}, "fraction is 2.0"),
        ({"--native": "nothing.pdb"}, "the native cannot be used"),
        ({"--native": "MODEL"}, "the native cannot be used"),
        ({"-o": "STRUCTURE"}, "is a file; -o takes a folder"),
    ],
)
def test_bad_input_is_told(files: Files, model: Path, tmp_path: Path, change: dict[str, str], told: str, capsys: Any):
    names = {"MODEL": str(model), "STRUCTURE": str(files.candidate)}
    options = {"-o": str(tmp_path / "out"), "--steps": "1"} | change
    words = [word for pair in options.items() for word in (pair[0], names.get(pair[1], pair[1]))]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr("sys.argv", ["forcefield-ml", "refine", str(model), str(files.candidate), *words])
        cli.main()
    assert end.value.code == 1
    assert told in capsys.readouterr().err


def test_the_input_is_never_written_over(files: Files, tmp_path: Path):
    source = write_pdb(tmp_path / "refined.pdb", helix(2))
    done: Refinement = refine(np.zeros_like, source)
    with pytest.raises(Exception, match="is the input, which is never written over"):
        done.write(tmp_path)


def test_the_picture_has_the_chain_and_the_arrows(files: Files):
    """A chain with a residue missing is drawn in two parts; longer vectors make longer arrows and a wider picture."""
    read = read_structure_file(files.candidate)
    assert [len(part) for part in trace_of(read.structure, read.start)] == [6]
    apart = read.start + np.where(read.structure.residue_index >= 2, 3.0, 0.0)[:, None]
    assert [len(part) for part in trace_of(read.structure, apart)] == [2, 4]
    empty = vector_field(read.structure, read.start, np.zeros_like(read.start), figures.BLUE, "none")
    full = vector_field(read.structure, read.start, files.truth.vectors(read.start), figures.BLUE, "some")
    assert empty.count(figures.BLUE) == 0
    assert full.count(figures.BLUE) > 20
