"""A system ready to run: structure file -> repaired and solvated -> MM -> relaxed -> the model's force."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import catch_warnings, filterwarnings

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import app, unit

from data_pipeline.entries.facts import inspect
from data_pipeline.errors import EntryError, PipelineError
from data_pipeline.systems.box import BoxShape
from data_pipeline.systems.build import build_system, protein_mask
from data_pipeline.systems.prepare import Prepared, prepare, read_prepared, write_prepared
from data_pipeline.systems.residues import is_water
from forcefield_ml.deploy.model_file.bundle import read_card
from forcefield_ml.deploy.system.bound import bound_models
from forcefield_ml.deploy.system.force_groups import add_reference
from forcefield_ml.deploy.system.masses import repartition, take_masses
from forcefield_ml.deploy.system.modes import check_mode
from forcefield_ml.errors import ConfigError, ForceModeError, TopologyError

MODE_OF = {
    "total": "solute",
    "total_minus_reciprocal": "solute",
    "solute_alone": "embedded",
    "reference_minus_mm": "correction",
}
"""What a model predicts, to the mode in which its force means that."""


@dataclass(frozen=True)
class Simulated:
    """A system with its force, and what it is.

    Parameters
    ----------
    system
        With every force that acts, and a remover of centre-of-mass motion.
    solute
        (N,) bool, the protein's atoms.
    mode
        How the model acts; "mm" without one.
    card
        Of the model, or an empty dict.
    warnings
        What a reader of the result should know.
    net_force_removed
        Whether the mean of the model's forces is taken off every atom.
    """

    system: openmm.System
    solute: NDArray[np.bool_]
    mode: str
    card: dict[str, Any]
    warnings: list[str]
    net_force_removed: bool = False


def solvated(
    path: Path, out: Path, *, ph: float, padding: float, seed: int, box_shape: BoxShape = "cube"
) -> tuple[Prepared, str]:
    """Return the solvated system of a structure file, written to `out`.

    A file that already has water, hydrogens and a box is taken as it is; anything else is repaired, protonated and
    put into water by the pipeline.

    Parameters
    ----------
    path
        PDB or mmCIF, for those to be prepared gzipped or not.
    out
        The mmCIF file to write.
    ph
        For the protonation states.
    padding
        nm of water around the protein.
    seed
        Of repair and solvation.
    box_shape
        See `data_pipeline.systems.box.BoxShape`.

    Returns
    -------
    prepared : Prepared
        Topology and positions.
    left_out : str
        What the file holds and the simulation does not (other chains, ligands), for a warning; empty if nothing.

    Raises
    ------
    ConfigError
        If there is no such file, or it cannot be prepared.
    TopologyError
        If it holds no protein.
    """
    if not path.is_file():
        raise ConfigError(f"there is no structure file {path}. Give a PDB or mmCIF file, such as 1crn.pdb.")
    try:
        ready, left_out = _as_prepared(path), ""
        if ready is None:
            left_out = _left_out(path)
            ready = prepare(path, out, ph=ph, padding=padding, box_shape=box_shape, seed=seed)
        else:
            write_prepared(ready.topology, ready.positions, out)
            ready = read_prepared(out)  # rounded, as whoever goes on with the run will find it
    except PipelineError as error:
        raise ConfigError(f"{path.name} cannot be simulated: {error}") from error
    if not protein_mask(ready.topology).any():
        raise TopologyError(f"{path.name} holds no protein; the model has nothing to act on. Give a protein structure.")
    return ready, left_out


def _left_out(path: Path) -> str:
    try:
        facts = inspect(path)
    except EntryError:  # a file without the archive's header or end may still be one that can be prepared
        return ""
    lost = []
    if facts.n_chains > 1:
        lost.append(f"all but the chain with most amino acids of {facts.n_chains} chains")
    if facts.ligands:
        lost.append(f"ligands and ions of the crystal ({', '.join(sorted(set(facts.ligands)))})")
    return f"preparation removes {' and '.join(lost)}; solvate the file yourself to keep them" if lost else ""


def is_solvated(topology: app.Topology) -> bool:
    """Tell whether a topology has a box, water and hydrogens on its protein: nothing is left to prepare.

    Parameters
    ----------
    topology
        Of any structure file.
    """
    water = any(is_water(residue.name) and len(list(residue.atoms())) == 3 for residue in topology.residues())
    mask = protein_mask(topology)
    elements = [atom.element.symbol if atom.element else "" for atom in topology.atoms()]
    hydrogens = sum(symbol == "H" for symbol, inside in zip(elements, mask, strict=True) if inside)
    # A protein is about half hydrogens; a crystal structure has none or a few.
    return topology.getPeriodicBoxVectors() is not None and water and hydrogens > 0.3 * mask.sum() > 0


def _as_prepared(path: Path) -> Prepared | None:
    if path.suffix == ".gz":
        return None
    try:
        found = structure_as_it_is(path)
    except ConfigError:  # `prepare` then says what is wrong with the file
        return None
    return found if is_solvated(found.topology) else None


def structure_as_it_is(path: Path) -> Prepared:
    """Read a structure file and change nothing.

    Parameters
    ----------
    path
        PDB or mmCIF, not gzipped.

    Raises
    ------
    ConfigError
        If OpenMM cannot read it.
    """
    try:
        if path.suffix.lower() in (".cif", ".mmcif"):
            return read_prepared(path)
        pdb = app.PDBFile(str(path))
    except Exception as error:  # OpenMM's readers raise many types
        raise ConfigError(f"{path} cannot be read as a PDB or mmCIF file: {error}") from error
    return Prepared(pdb.topology, np.array(pdb.getPositions(asNumpy=True).value_in_unit(unit.nanometer)))


def mm_system(
    prepared: Prepared, force_field: tuple[str, ...], cutoff: float, hydrogen_mass: float | None = None
) -> openmm.System:
    """Return the MM system, flexible throughout: the model was trained on forces that contain every bond.

    Parameters
    ----------
    prepared
        The solvated system.
    force_field
        Names of OpenMM force field files.
    cutoff
        nm, of the direct space.
    hydrogen_mass
        u; None for that of the element.

    Raises
    ------
    ConfigError
        If the force field does not describe the system, or the hydrogen mass is not allowed.
    """
    try:
        system = build_system(prepared.topology, force_field, cutoff=cutoff)
    except EntryError as error:
        raise ConfigError(f"no MM system: {error}") from error
    if not any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces()):
        system.addForce(openmm.CMMotionRemover())
    if hydrogen_mass is not None:
        repartition(system, prepared.topology, hydrogen_mass)
    return system


def mode_for(
    card: dict[str, Any], mode: str | None, *, reference: Path | bool = False, remove_net_force: bool = True
) -> str:
    """Return the mode in which a model acts; refuse what has no meaning there, before any work.

    Parameters
    ----------
    card
        Of the model.
    mode, reference, remove_net_force
        As for `add_model`.

    Raises
    ------
    ConfigError, ForceModeError
        If the card does not allow the mode, or the mode not what is asked for.
    """
    mode = mode or MODE_OF.get(card["predicts"], "solute")
    check_mode(card, mode)
    if isinstance(reference, Path):
        if mode != "system":
            raise ConfigError(
                f"reference is {reference}, but a model is the reference of multiple time stepping in mode 'system' "
                f"alone, and this is mode {mode!r}. Ask for mode 'system' (simulate --mode system), or leave reference "
                "out: MM kicks then"
            )
        about = read_card(reference)
        check_mode(about, mode)
        if not about["energy"]:
            raise ForceModeError(
                f"reference is {reference}, a model that has forces but no energy; the reference must be conservative: "
                "train one with model.head: energy, or leave reference out for MM"
            )
    if reference and mode == "correction":
        raise ConfigError(
            "multiple time stepping with MM as the reference would take back what a model in mode 'correction' adds; "
            "run it with one step at a time"
        )
    if reference and mode == "embedded":
        raise ConfigError(
            "multiple time stepping in mode 'embedded' has two NonbondedForces with different exclusions, which "
            "OpenMM's CPU and GPU platforms refuse; run it with one step at a time"
        )
    if not remove_net_force and mode != "system":
        raise ConfigError(f"the net force is removed in mode 'system' alone; leave that out in mode {mode!r}")
    return mode


def add_model(
    system: openmm.System,
    topology: app.Topology,
    model: Path | None,
    mode: str | None,
    backend: str,
    mm_platform: str = "auto",
    *,
    reference: Path | bool = False,
    remove_net_force: bool = True,
) -> Simulated:
    """Add a model's force to an MM system.

    Parameters
    ----------
    system
        Of `mm_system`; may be changed in place. Mode `system` uses of it the masses and, where wanted, the charges.
    topology
        Its topology.
    model
        A model.pt, or None for MM alone.
    mode
        A mode of `DeployedModel.add_to_system`; None takes the one that the card allows.
    backend
        "auto", "pythonforce" or "torchforce".
    mm_platform
        Of the inner MM Context of mode `solute`.
    reference
        For multiple time stepping: have the MM system at hand, which mode `solute` has in any case, or in mode `system`
        a model with an energy.
    remove_net_force
        In mode `system`, unless the model has an energy.

    Raises
    ------
    ConfigError
        If what is asked for has no meaning in the mode.
    ModelFileError, ForceModeError, TopologyError
        As `forcefield_ml.load` and `DeployedModel.add_to_system`.
    """
    solute = protein_mask(topology)
    if model is None:
        return Simulated(system, solute, "mm", {}, [])
    import forcefield_ml
    from forcefield_ml.deploy.model import NEAREST_WARNING

    deployed = forcefield_ml.load(model)
    card = deployed.card
    mode = mode_for(card, mode, reference=reference, remove_net_force=remove_net_force)
    kept = copy.deepcopy(system) if reference and mode == "system" else None
    if isinstance(reference, Path):
        dear = forcefield_ml.load(reference)
        kept = dear.create_system(topology, backend=backend, charges=system if dear.needs_reciprocal else None)
    if mode == "system":
        mm, charges = system, system if deployed.needs_reciprocal else None
        system = deployed.create_system(
            topology, backend=backend, charges=charges, remove_net_force=None if remove_net_force else False
        )
        take_masses(system, mm)
    else:
        system = deployed.add_to_system(system, topology, mode=mode, backend=backend, mm_platform=mm_platform)
    if kept is not None:
        add_reference(system, kept, mm_platform)
    warnings = []
    if mode == "solute" and not reference:  # whose kicks make up for it
        warnings.append(
            "mode solute: solute atoms feel the network alone, solvent atoms the MM force of everything; action and "
            "reaction between the two differ, so centre-of-mass motion is removed and no energy is conserved."
        )
    if mode == "solute" and card["energy"] and card["target_atoms"] == "all":
        warnings.append(
            "the model's own energy has no meaning in mode solute; mode system conserves it (--mode system)."
        )
    if card["neighbours"]["kind"] == "nearest":
        warnings.append(NEAREST_WARNING)
    removed = any(found.removes_net_force for found in bound_models(system))
    return Simulated(system, solute, mode, card, warnings, removed)


def platform_named(name: str) -> openmm.Platform:
    """Return an OpenMM platform.

    Parameters
    ----------
    name
        Such as "CPU".

    Raises
    ------
    ConfigError
        If this installation has none of that name.
    """
    names = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    if name not in names:
        raise ConfigError(f"OpenMM has no platform {name!r} here. Allowed: {', '.join(names)}.")
    return openmm.Platform.getPlatformByName(name)


@contextmanager
def without_energy_warning() -> Iterator[None]:
    """Keep the warning against minimisers and barostats from the screen: neither is used with the model here."""
    with catch_warnings():
        filterwarnings("ignore", message="this model has forces but no energy")
        yield


def relax(
    system: openmm.System,
    prepared: Prepared,
    context_options: tuple[Any, ...],
    *,
    temperature: float,
    timestep: float,
    equilibration: float,
    max_iterations: int,
    seed: int,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Minimise with MM, then warm up with MM; the model's force must not be in the system yet.

    Velocities start at twice the temperature, half of which flows into the potential; a friction of 10/ps does
    the rest.

    Parameters
    ----------
    system
        Of `mm_system`.
    prepared
        Where the atoms start.
    context_options
        Platform and its properties.
    temperature
        K.
    timestep
        ps.
    equilibration
        ps; 0 leaves the minimised structure at rest.
    max_iterations
        Of OpenMM's minimiser.
    seed
        Of velocities and random forces.

    Returns
    -------
    positions
        (N, 3) nm.
    velocities
        (N, 3) nm/ps.

    Raises
    ------
    ConfigError
        If the atoms blow up already with MM.
    """
    integrator = openmm.LangevinMiddleIntegrator(
        temperature * unit.kelvin, 10.0 / unit.picosecond, timestep * unit.picosecond
    )
    integrator.setRandomNumberSeed(seed + 1)
    context = openmm.Context(system, integrator, *context_options)
    context.setPositions(prepared.positions * unit.nanometer)
    try:
        openmm.LocalEnergyMinimizer.minimize(context, 10.0, max_iterations)
        if equilibration > 0:
            context.setVelocitiesToTemperature(2 * temperature * unit.kelvin, seed + 1)
            integrator.step(max(1, round(equilibration / timestep)))
    except openmm.OpenMMException as error:
        raise ConfigError(
            f"the structure blows up with the MM force field alone: {error}. Look for clashes, or minimise it longer."
        ) from error
    state = context.getState(positions=True, velocities=True)
    positions = np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    velocities = np.array(state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond))
    return positions, velocities
