"""What the README and the other pages say exists, and what they show runs."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from command_lines import PROGRAMS, commands, named_in, parse
from openmm import app, unit
from packaging import utils
from packaging.requirements import Requirement

import forcefield_ml
from forcefield_ml.deploy.system.modes import MODES, NEEDED
from forcefield_ml.errors import ForceModeError

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
"""Its blocks: the three lines, openmm-ml, ASE."""
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "envs/README.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md")) + sorted((ROOT / "examples").rglob("*.md"))


def names(paths: list[Path]) -> list[str]:
    """Return paths as a test's name shows them."""
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_commands_exist(page: Path) -> None:
    """Every command line on a page is one that the programs accept; a command that is only named exists."""
    for program, *words in named_in(page.read_text(encoding="utf-8")):
        if len(words) > 1:
            parse([program, *words])
        else:
            assert set(words) <= set(commands(program)), (program, words)


def test_table_of_commands_is_complete() -> None:
    """The README's table has a row for every command of both programs, each with all its arguments."""
    rows = re.findall(r"^\| `((?:data-pipeline|forcefield-ml) [^`]+)` \|", README, re.MULTILINE)
    for row in rows:
        assert row.split() in named_in(README)
        parse(row.split())
    shown = [tuple(row.split()[:2]) for row in rows]
    assert sorted(shown) == sorted((program, name) for program in PROGRAMS for name in commands(program))


def make_targets(text: str) -> set[str]:
    """Return the targets of every `make` command on a page."""
    lines = re.findall(r"(?:^|`)make ([^`#\n]+)", text, re.MULTILINE)
    return {word for line in lines for word in line.split() if "=" not in word}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_make_targets_exist(page: Path) -> None:
    """Make knows every target that a page names."""
    for target in make_targets(page.read_text(encoding="utf-8")):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_make_targets_are_found() -> None:
    """Targets are seen in code and between backticks, and make refuses one that is not there."""
    assert {"demo", "test"} <= make_targets(README)
    assert make_targets("Type `make A=b lint`.\n\n```\nmake nothing  # at all\n```") == {"lint", "nothing"}
    done = subprocess.run(["make", "-n", "nothing"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0


def broken_links(page: Path) -> list[str]:
    """Return the relative links of a page that lead nowhere; an anchor must be a heading of its page."""
    broken = []
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    return broken


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_resolve(page: Path) -> None:
    """Relative links lead to a file, a folder or a heading."""
    assert broken_links(page) == []


def test_broken_links_are_seen(tmp_path: Path) -> None:
    """The checker finds what is broken, and only that."""
    page = tmp_path / "page.md"
    page.write_text("# A heading\n[a](page.md#a-heading) [b](b.md) [c](#none) [d](https://example.org) [e](.)\n")
    assert broken_links(page) == ["b.md", "#none"]


def solvated(regenerated: Path) -> tuple[app.PDBxFile, openmm.System]:
    """Return a protein in water, and its flexible MM system."""
    structure = app.PDBxFile(str(next((regenerated / "prepared").glob("*.cif"))))
    system = app.ForceField("amber14-all.xml", "amber14/tip3pfb.xml").createSystem(
        structure.topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=0.9 * unit.nanometer,
        constraints=None,
        rigidWater=False,
    )
    return structure, system


def solute_of(topology: app.Topology) -> list[int]:
    """Return the indices of the protein's atoms."""
    return [atom.index for atom in topology.atoms() if atom.residue.name not in {"HOH", "NA", "CL"}]


def test_three_lines_run(regenerated: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's lines put the network's force on the protein; the last one refuses a barostat."""
    *before, last = ast.parse(PYTHON[0]).body
    assert ast.unparse(last) == "forcefield_ml.check(simulation)"
    structure, system = solvated(regenerated)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt").symlink_to(model_file)
    space: dict[str, Any] = {"system": system, "topology": structure.topology}
    exec(compile(ast.Module(before, []), "README.md", "exec"), space)

    platform = openmm.Platform.getPlatformByName("CPU")
    step = 0.0005 * unit.picosecond

    def simulate() -> app.Simulation:
        simulation = app.Simulation(
            structure.topology, space["system"], openmm.VerletIntegrator(step), platform, {"Threads": "1"}
        )
        simulation.context.setPositions(structure.positions)
        return simulation

    space["simulation"] = simulate()
    exec(compile(ast.Module([last], []), "README.md", "exec"), space)
    positions, box = structure.getPositions(asNumpy=True), structure.topology.getPeriodicBoxVectors()
    solute = solute_of(structure.topology)
    expected = space["model"].forces(positions, box, topology=structure.topology, atoms=solute)
    found = space["simulation"].context.getState(forces=True).getForces(asNumpy=True)._value[solute]
    # What is left of the MM forces, which are single precision and up to 10⁵ here, after subtracting them.
    assert np.abs(found - expected).max() < 1e-2 * np.abs(expected).max()
    assert np.sqrt(np.mean(expected**2)) > 1  # kJ/mol/nm; a network of three batches is timid

    space["system"].addForce(openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin))
    space["simulation"] = simulate()
    with pytest.raises(ForceModeError, match="barostat"):
        exec(compile(ast.Module([last], []), "README.md", "exec"), space)


def test_other_programs_run(
    regenerated: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's lines for openmm-ml and ASE give the forces that the model gives."""
    ase, constraints = pytest.importorskip("ase"), pytest.importorskip("ase.constraints")
    pytest.importorskip("openmmml")
    _, openmm_ml, with_ase = PYTHON
    structure, system = solvated(regenerated)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.pt").symlink_to(model_file)
    solute = solute_of(structure.topology)
    positions, box = structure.getPositions(asNumpy=True), structure.topology.getPeriodicBoxVectors()
    model = forcefield_ml.load("model.pt")
    expected = model.forces(positions, box, topology=structure.topology, atoms=solute)
    space: dict[str, Any] = {"system": system, "topology": structure.topology, "solute": solute}
    exec(compile(openmm_ml, "README.md", "exec"), space)
    context = openmm.Context(
        space["system"], openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"}
    )
    context.setPositions(positions)
    found = context.getState(forces=True).getForces(asNumpy=True)._value[solute]
    assert np.abs(found - expected).max() < 1e-2 * np.abs(expected).max()  # as in the test of the three lines

    space["forcefield_ml"] = forcefield_ml
    space["atoms"] = ase.Atoms(
        [atom.element.symbol for atom in structure.topology.atoms()],
        positions=positions.value_in_unit(unit.angstrom),
        cell=[vector.value_in_unit(unit.angstrom) for vector in box],
        pbc=True,
        constraint=constraints.FixAtoms(np.setdiff1d(np.arange(structure.topology.getNumAtoms()), solute)),
    )
    exec(compile(with_ase, "README.md", "exec"), space)
    units = pytest.importorskip("ase.units")
    kj_mol_nm = units.kJ / units.mol / units.nm
    found = space["atoms"].get_forces(apply_constraint=False)[solute] / kj_mol_nm
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_modes_and_rooms_are_there() -> None:
    """The README's tables of modes and rooms name what exists."""
    modes = re.findall(r"^\| `(\w+)` \| ", README, re.MULTILINE)
    assert tuple(modes) == MODES == tuple(NEEDED)
    rooms = re.findall(r"^\| `([\w/]+/\w*)` \|", README, re.MULTILINE)
    assert len(rooms) > 8
    assert [room for room in rooms if not (ROOT / room).is_dir()] == []


def canonical(name: str) -> str:
    """Return a package's name as all spellings of it share it."""
    return str(utils.canonicalize_name(name))


def pins(path: Path) -> dict[str, str]:
    """Return normalised name -> version of a file of pins."""
    lines = [line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
    pairs = [line.split("==") for line in lines if line and not line.startswith("-")]
    return {canonical(re.sub(r"\[.*\]", "", name)): version for name, version in pairs}


PINS = pins(ROOT / "envs/cpu.txt")


def test_environment_is_the_pinned_one() -> None:
    """Every pin is the version installed; where this fails the environment is not the one that `make` creates."""
    installed = {canonical(found.metadata["Name"]): found.version for found in metadata.distributions()}
    # torch from PyTorch's own index calls itself 2.9.1+cpu
    differing = {
        name: (pin, installed.get(name))
        for name, pin in PINS.items()
        if (installed.get(name) or "").split("+")[0] != pin
    }
    assert differing == {}


def test_pins_cover_what_setup_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each requirement of setup.py, of the extras that cpu.txt serves too, has a pin that satisfies it."""
    asked: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", lambda **arguments: asked.update(arguments))
    monkeypatch.chdir(ROOT)
    runpy.run_path("setup.py")
    extras = asked["extras_require"]
    requirements = [
        Requirement(text)
        for text in (*asked["install_requires"], *extras["torchforce"], *extras["cluster"], *extras["dev"])
    ]
    assert len(asked["install_requires"]) > 10
    for requirement in requirements:
        pin = PINS.get(canonical(requirement.name))
        assert pin is not None, f"{requirement} has no pin in envs/cpu.txt"
        assert requirement.specifier.contains(pin), f"{requirement} is not met by the pin {pin}"


def test_cuda_environment_agrees() -> None:
    """cuda12.txt builds on cpu.txt and pins nothing otherwise."""
    path = ROOT / "envs/cuda12.txt"
    assert "-r cpu.txt" in path.read_text().splitlines()
    assert pins(path).items() <= PINS.items()


def test_table_of_environments_agrees() -> None:
    """The versions in envs/README.md are those pinned."""
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|\n").split("|")]
        for line in (ROOT / "envs/README.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    ]
    columns = {name: k for k, name in enumerate(header) if canonical(name) in PINS}
    assert {"torch", "openmm", "openmmtorch", "e3nn"} <= set(columns)
    for row in rows:
        for name, column in columns.items():
            assert row[column].split(" +")[0] == PINS[canonical(name)], (row[0], name)
