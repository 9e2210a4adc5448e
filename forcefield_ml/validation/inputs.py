"""What validate is given, made into a dataset: a dataset as it is, frames of a structure or a trajectory labelled."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from openmm import unit

from forcefield_ml.data.target import Target
from forcefield_ml.errors import ConfigError

if TYPE_CHECKING:
    from data_pipeline.systems.prepare import Prepared
    from data_pipeline.systems.sample import Frames
    from forcefield_ml.validation.validate import ValidationConfig

DATASETS, STRUCTURES = (".h5", ".hdf5"), (".pdb", ".ent", ".cif", ".mmcif")
TRAJECTORIES = (".dcd", ".xtc", ".trr", ".nc")

STDOUT = 1
"""Its descriptor, which C code writes to."""

Message = Callable[[str], None]


def input_kind(path: Path, topology: Path | None = None) -> str:
    """Tell a dataset from a structure and a trajectory by the file's name.

    Parameters
    ----------
    path
        What the user gave.
    topology
        Structure file of a trajectory's atoms.

    Returns
    -------
    str
        "dataset", "structure" or "trajectory".

    Raises
    ------
    ConfigError
        If it is neither, there is no such file, or a trajectory has no topology.
    """
    name = path.name.lower().removesuffix(".gz")
    if not path.is_file():
        raise ConfigError(
            f"there is no input {path}. Give a dataset.h5 of data-pipeline, a PDB or mmCIF file, or a trajectory."
        )
    if name.endswith(TRAJECTORIES):
        if topology is None:
            raise ConfigError(
                f"{path} is a trajectory, which holds no names of atoms. Name a PDB or mmCIF file with the same atoms: "
                "--topology FILE; a run of `forcefield-ml simulate` has topology.cif in its folder."
            )
        if not topology.is_file():
            raise ConfigError(f"there is no topology {topology}. Give a PDB or mmCIF file with the trajectory's atoms.")
        return "trajectory"
    if topology is not None:
        raise ConfigError(f"--topology is for trajectories ({', '.join(TRAJECTORIES)}), and {path} is none.")
    if name.endswith(DATASETS):
        return "dataset"
    if name.endswith(STRUCTURES):
        return "structure"
    allowed = ", ".join((*DATASETS, *STRUCTURES, *TRAJECTORIES))
    raise ConfigError(f"{path} is of no kind that validate reads. Allowed endings: {allowed}, structures also .gz.")


def labelled(config: ValidationConfig, kind: str, target: Target, message: Message) -> Path:
    """Make a dataset of frames labelled with AMBER14, all of it in the split "test"; one there already is kept.

    Parameters
    ----------
    config
        Of the validation; read are input, topology, output, frames and seed.
    kind
        "structure": frames are sampled at 300 K; "trajectory": frames are taken evenly from it.
    target
        What the model predicts.
    message
        Called with lines for the user.

    Returns
    -------
    Path
        The dataset.

    Raises
    ------
    ConfigError
        If the input cannot be read, prepared, sampled or labelled.
    """
    import h5py

    from data_pipeline.errors import PipelineError

    if target.name == "reference_minus_mm":
        raise ConfigError(
            f"{config.model} predicts a reference minus an MM force field, and validate labels structures with AMBER14 "
            "alone. Give a dataset.h5 with that reference: label: {parts: [minus_mm]} in data-pipeline run"
        )
    sources = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (config.input, config.topology) if path]
    about = {"input": sources, "frames": config.frames, "seed": config.seed, "parts": target.parts}
    settings = json.dumps(about, sort_keys=True)
    path = config.output / "input.h5"
    if path.is_file():
        with h5py.File(path) as file:
            if file.attrs.get("config") == settings:
                return path
    try:
        prepared, frames = (_from_trajectory if kind == "trajectory" else _from_structure)(config, message)
        _pack(config, prepared, frames, target, settings, sources[0], path)
    except PipelineError as error:
        raise ConfigError(f"{config.input.name} cannot be labelled: {error}") from error
    return path


def _from_structure(config: ValidationConfig, message: Message) -> tuple[Prepared, Frames]:
    from data_pipeline.systems.sample import relax, sample_thermal
    from forcefield_ml.simulation.build import solvated

    message(f"preparing, sampling and labelling {config.frames} frames of {config.input.name}")
    prepared, left_out = solvated(config.input, config.output / "input.cif", ph=7.0, padding=0.8, seed=config.seed)
    if left_out:
        message(f"note: {left_out}")
    return prepared, sample_thermal(prepared, relax(prepared), n_frames=config.frames, seed=config.seed)


def _from_trajectory(config: ValidationConfig, message: Message) -> tuple[Prepared, Frames]:
    """Return evenly spaced frames, the last among them: the first may be a start that no run of the force chose."""
    import mdtraj

    from data_pipeline.systems.sample import Frames
    from forcefield_ml.simulation.build import protein_mask, structure_as_it_is

    assert config.topology is not None
    prepared = structure_as_it_is(config.topology)
    if not protein_mask(prepared.topology).any():
        raise ConfigError(f"{config.topology} holds no protein; there is nothing to judge the model on.")
    atoms = prepared.topology.getNumAtoms()
    topology = mdtraj.Topology.from_openmm(prepared.topology)
    try:
        with _nothing_printed_by_c(), mdtraj.open(str(config.input)) as file:
            count = len(file)
        if not count:
            raise ConfigError(f"{config.input} holds no frame.")
        chosen = np.unique(np.linspace(count - 1, 0, config.frames, endpoint=count <= config.frames).astype(int))
        message(f"labelling {len(chosen)} of {count} frames of {config.input.name} with AMBER14")
        with _nothing_printed_by_c():
            frames = mdtraj.join([mdtraj.load_frame(str(config.input), int(index), top=topology) for index in chosen])
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{config.input} cannot be read with the {atoms} atoms of {config.topology}: {error}. Give the topology "
            "that the trajectory was written with."
        ) from error
    if frames.unitcell_vectors is None and prepared.topology.getPeriodicBoxVectors() is None:
        raise ConfigError(
            f"neither {config.input} nor {config.topology} holds a periodic box, and the reference forces need one. "
            "Give a topology with a CRYST1 record or a cell."
        )
    if frames.unitcell_vectors is None:
        frames.unitcell_vectors = np.broadcast_to(prepared.box, (len(chosen), 3, 3)).copy()
    frames.make_molecules_whole()
    box = _reduced(frames.unitcell_vectors)
    prepared.topology.setPeriodicBoxVectors(box[0] * unit.nanometer)
    zeros = np.zeros(len(chosen), dtype=np.float32)
    return prepared, Frames(_float32(frames.xyz), _float32(box), zeros, zeros)


@contextmanager
def _nothing_printed_by_c() -> Iterator[None]:
    """Keep stdout for the answer: MDTraj's reader of DCD files, which is C, prints there whenever it opens one."""
    sys.stdout.flush()
    kept = os.dup(STDOUT)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), STDOUT)
        yield
    finally:
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, STDOUT)
        os.close(kept)


def _float32(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.ascontiguousarray(values, dtype=np.float32)


def _reduced(box: NDArray[Any]) -> NDArray[np.float64]:
    """Return boxes (F, 3, 3) in OpenMM's reduced form, in nm: MDTraj makes them from lengths and angles.

    Its zeros are not exact, and the third vector of a rhombic dodecahedron, half an edge long in two directions, comes
    out longer than half by rounding.
    """
    exact = np.tril(np.asarray(box, dtype=np.float64))
    exact = np.where(np.abs(exact) < 1e-6, 0.0, exact)
    for row, shorter in ((2, 1), (2, 0), (1, 0)):
        times = np.round(exact[:, row, shorter] / exact[:, shorter, shorter])
        exact[:, row] -= times[:, None] * exact[:, shorter]
    return exact


def _pack(
    config: ValidationConfig,
    prepared: Prepared,
    frames: Frames,
    target: Target,
    settings: str,
    source: str,
    path: Path,
) -> None:
    from importlib import metadata

    from data_pipeline.dataset.pack import PackedEntry, pack
    from data_pipeline.labels.label import describe, label
    from data_pipeline.schema import ENTRY_FIELDS
    from data_pipeline.systems.build import DEFAULT_FORCE_FIELD
    from forcefield_ml.simulation.build import protein_mask

    mask = protein_mask(prepared.topology)
    residues = list(dict.fromkeys(a.residue for a in prepared.topology.atoms() if mask[a.index]))
    labels = label(prepared.topology, frames.positions, frames.box, wanted=target.parts)
    parts = {field.name: labels.parts[field.name] for field in ENTRY_FIELDS if field.name in labels.parts}
    fields = {
        **describe(prepared.topology),
        "charges": labels.charges,
        "positions": frames.positions,
        "box": frames.box,
        "forces": labels.forces,
        "energy": labels.energy,
        **parts,
    }
    attributes = {
        **{name: value for name, value in labels.parts.items() if name not in parts},
        "split": "test",
        "cluster": "input",
        "sequence": _sequence(config.topology or config.input, [residue.name for residue in residues]),
        "source_file": config.input.name,
        "source_sha256": source,
        "seed": config.seed,
        "pme_alpha": labels.pme_alpha,
        "pme_grid": labels.pme_grid,
    }
    about = {
        "protocol": "thermal",
        "force_field": ",".join(DEFAULT_FORCE_FIELD),
        "config": settings,
        "versions": json.dumps({package: metadata.version(package) for package in ("openmm", "pdbfixer")}),
    }
    pack([PackedEntry(config.input.name.split(".")[0].lower(), fields, attributes)], path, about)


def _sequence(path: Path, names: list[str]) -> str:
    """Return the sequence as deposited, which is what a model's card holds, or else that of the residues prepared."""
    import gemmi

    from data_pipeline.entries.facts import inspect
    from data_pipeline.errors import EntryError

    try:
        facts = inspect(path)
    except EntryError:
        return gemmi.one_letter_code(names)
    return facts.sequence if facts.n_protein_chains == 1 else gemmi.one_letter_code(names)
