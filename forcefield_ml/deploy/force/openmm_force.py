"""The two OpenMM forces that carry a model: PythonForce and TorchForce. Same forces, same checks."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import openmm
import torch

from forcefield_ml.bonded.bound import BoundTerms, bound_terms
from forcefield_ml.bonded.module import keys_of
from forcefield_ml.deploy.force.binding import Binding
from forcefield_ml.deploy.force.device import choose_device
from forcefield_ml.deploy.force.evaluator import Evaluator
from forcefield_ml.deploy.force.plugin_repair import INSTALL, import_torchforce
from forcefield_ml.deploy.guards.stability import MAX_FORCE
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.script import BoundForce, forces_complaint, positions_complaint
from forcefield_ml.deploy.stored.locate import locate
from forcefield_ml.errors import BoxError, ConfigError, ForcefieldMLError, UnstableError, closest
from forcefield_ml.models.interface import Prediction
from forcefield_ml.nn.atom_types import CODE_STEP

OURS = "forcefield_ml:"
"""Begins the name of every force of ours."""

REFERENCE = OURS + "reference:"
"""Begins the name of a force that acts in the outer kick of multiple time stepping alone (`system.force_groups`)."""

NO_ENERGY = OURS + "forces-without-energy"
"""Name of the OpenMM force of a model without an energy; `guards.check` looks for it, also after a reload."""

WITH_ENERGY = OURS + "forces-with-energy"
BOX_TOLERANCE = 1e-4
"""nm, by which an entry of the box may differ from the one bound: rounding, no barostat's move."""

ENERGY_WARNING = (
    "this model has forces but no energy: LocalEnergyMinimizer does not work with it and barostats are wrong. "
    "Minimise with forcefield_ml.simulation.fire, run at constant volume, and let forcefield_ml.check(simulation) see "
    "to both"
)

INSTALL_OPENMM = 'pip install "openmm>=8.6.1"'

BACKENDS = ("auto", "pythonforce", "torchforce")


class BackendChoice(NamedTuple):
    """A backend and why it was chosen."""

    backend: str
    reason: str


def choose_backend(backend: str = "auto") -> BackendChoice:
    """Return the backend that will serve, with the reason.

    Parameters
    ----------
    backend
        One of `BACKENDS`.

    Raises
    ------
    ConfigError
        If there is no such backend, or it is not to be had here; says what to install.
    """
    if backend not in BACKENDS:
        raise ConfigError(f"no backend {backend!r}.{closest(backend, BACKENDS)}")
    version = openmm.Platform.getOpenMMVersion()
    has_python, has_torch = hasattr(openmm, "PythonForce"), find_spec("openmmtorch") is not None
    if backend == "pythonforce" and not has_python:
        raise ConfigError(f"OpenMM {version} has no PythonForce. Install a newer one: {INSTALL_OPENMM}")
    if backend != "auto":
        return BackendChoice(backend, "asked for")
    if has_python:
        return BackendChoice("pythonforce", f"OpenMM {version} has PythonForce, which works with any release of torch")
    if has_torch:
        return BackendChoice(
            "torchforce", f"OpenMM {version} has no PythonForce (8.5 and later have), openmmtorch is here"
        )
    raise ConfigError(
        f"no backend to run a model: OpenMM {version} has no PythonForce, and openmmtorch is not installed. Install "
        f"one of them: {INSTALL_OPENMM}, or: {INSTALL}"
    )


RAISED: list[ForcefieldMLError] = []
"""The last error that a model raised inside OpenMM, which passes on the message alone."""

BOX_COMPLAINTS = ("the periodic box differs", "the box ", "a periodic box ", "the model is bound to a periodic box")
"""How messages about the box begin: TorchScript knows one type of error."""


def kind_of(message: str) -> type[ForcefieldMLError]:
    """Return the type of error of a message that came out of OpenMM.

    Parameters
    ----------
    message
        Without the trace of TorchScript.
    """
    for error in RAISED:
        if str(error).strip().rstrip(".") == message:
            return type(error)
    return BoxError if message.startswith(BOX_COMPLAINTS) else UnstableError


@dataclass
class ModelCallable:
    """What PythonForce calls. It pickles as plain data; the model is read, and its hash verified, at the first call.

    Parameters
    ----------
    path, sha256
        The model.pt, as `locate.record` writes its place.
    binding
        As a dict of plain values.
    has_energy
        Whether the forces, on the atoms that get them, are the gradient of an energy, so that the box may change.
    device
        ``"auto"`` takes CUDA where torch has it.
    """

    path: str
    sha256: str
    binding: dict[str, Any]
    has_energy: bool
    device: str = "auto"
    _ready: Any = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return plain data alone: a System XML holds this, and nobody should have to trust more."""
        return {key: value for key, value in self.__dict__.items() if key != "_ready"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _ready=None)

    def _prepare(self) -> _Ready:
        device = choose_device(self.device)
        binding = Binding(**self.binding)
        inputs = np.array(binding.inputs)
        if not self.has_energy:
            warnings.warn(ENERGY_WARNING, stacklevel=2)
        species = torch.tensor(binding.species, device=device)
        mask = torch.from_numpy(np.isin(inputs, binding.targets)).to(device)
        path = str(locate(self.path, self.sha256))
        loaded = bundle.read_cached(path, self.sha256, device)
        return _Ready(
            evaluate=evaluator_of(loaded, species, mask, self.binding.get("bonds")),
            inputs=inputs if len(inputs) < binding.n_particles else None,
            targets=np.array(binding.targets),
            rows=torch.from_numpy(np.flatnonzero(np.isin(inputs, binding.targets))),
            box=None if binding.box is None else np.array(binding.box),
            labels=binding.labels,
            device=device,
            remove_net_force=binding.remove_net_force,
        )

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        """Return energy in kJ/mol and forces (N, 3) in kJ/mol/nm."""
        try:
            return self._evaluate(state)
        except ForcefieldMLError as error:
            RAISED[:] = [error]
            raise

    def _evaluate(self, state: openmm.State) -> tuple[float, np.ndarray]:
        if self._ready is None:
            self._ready = self._prepare()
        ready: _Ready = self._ready
        everywhere = state.getPositions(asNumpy=True)._value
        box = None
        if ready.box is not None:
            now = state.getPeriodicBoxVectors(asNumpy=True)._value
            if not self.has_energy:
                check_box_unchanged(now, ready.box)
            box = torch.tensor(now, dtype=torch.float64, device=ready.device)
        seen = torch.tensor(everywhere if ready.inputs is None else everywhere[ready.inputs], dtype=torch.float64)
        complaint = positions_complaint(seen, ready.labels)
        if complaint:
            raise UnstableError(f"at step {state.getStepCount()}: {complaint}")
        prediction = ready.evaluate(seen.to(ready.device), box)
        if prediction.forces is None:
            raise ForcefieldMLError(f"the model {self.path} returned no forces")
        found = prediction.forces.cpu()
        complaint = forces_complaint(found, ready.rows, ready.labels, MAX_FORCE)
        if complaint:
            raise UnstableError(f"at step {state.getStepCount()}: {complaint}")
        forces = np.zeros((len(everywhere), 3))
        forces[ready.targets] = found.numpy()
        if ready.remove_net_force:
            forces -= forces.mean(axis=0)
        if not self.has_energy or prediction.energy is None:
            return 0.0, forces
        return float(prediction.energy), forces


def evaluator_of(
    loaded: bundle.Loaded,
    species: torch.Tensor,
    targets: torch.Tensor | None = None,
    bonds: Sequence[Sequence[int]] | None = None,
) -> Callable[[torch.Tensor, torch.Tensor | None], Prediction]:
    """Return what gives the forces of one system: the engine where the file allows it, else the file's TorchScript.

    Parameters
    ----------
    loaded
        The model.
    species
        (N,) int64, atomic numbers, on the model's device.
    targets
        (N,) bool, the atoms to predict; None for all.
    bonds
        (B, 2) indices of bonded atoms; a model that brings no bonded terms has no use for them, another needs them.

    Raises
    ------
    ConfigError
        If the model brings bonded terms and is told no bonds.
    """
    if bonds is None and keys_of(loaded.module) is not None:
        raise ConfigError(
            "the model brings bonded terms, which species do not tell: its network alone would give forces without "
            "them. Pass bonds, (B, 2) indices of bonded atoms; an empty list where there are none"
        )
    terms = terms_of(loaded.module, species, targets, bonds or ()).to(species.device)
    if loaded.model is not None:
        return Evaluator(loaded.model, species, targets, terms=terms)
    return partial(_by_torchscript, loaded.module, species, targets, terms)


def terms_of(
    module: torch.nn.Module, species: torch.Tensor, targets: torch.Tensor | None, bonds: Sequence[Sequence[int]]
) -> BoundTerms:
    """Return the bonded terms that a model brings; species may be codes of atom types, parameters as `evaluator_of`."""
    moved = None if targets is None else targets.cpu().numpy()
    pairs = np.array(bonds, dtype=np.int64).reshape(-1, 2)
    return bound_terms(module, species.cpu().numpy() % CODE_STEP, pairs, moved)


def _by_torchscript(
    module: torch.jit.ScriptModule,
    species: torch.Tensor,
    targets: torch.Tensor | None,
    terms: BoundTerms,
    positions: torch.Tensor,
    box: torch.Tensor | None = None,
) -> Prediction:
    with torch.no_grad():
        found = Prediction(*module(species, positions, box, targets))
        return terms.complete(found, positions, box, targets)


class _Ready(NamedTuple):
    """What a callable keeps between calls; never pickled."""

    evaluate: Callable[[torch.Tensor, torch.Tensor | None], Prediction]
    inputs: np.ndarray | None
    targets: np.ndarray
    rows: torch.Tensor
    box: np.ndarray | None
    labels: list[str]
    device: str
    remove_net_force: bool


def check_box_unchanged(now: np.ndarray, bound: np.ndarray) -> None:
    """Raise `BoxError` if the box is not the one bound: without an energy, no change of volume has a meaning."""
    change = float(np.abs(np.asarray(now) - bound).max())
    if not change <= BOX_TOLERANCE:
        raise BoxError(
            f"the periodic box differs by {change:.4g} nm from the one the model was bound to, and the model has no "
            "energy, so no barostat can act on it: run at constant volume, or bind the model again to a topology "
            "with the box you want (topology.setPeriodicBoxVectors)"
        )


def make_python_force(path: str, sha256: str, binding: Binding, has_energy: bool, device: str) -> openmm.Force:
    """Return a PythonForce for a bound model; parameters as of `ModelCallable`."""
    force = openmm.PythonForce(ModelCallable(path, sha256, dict(vars(binding)), has_energy, device))
    force.setUsesPeriodicBoundaryConditions(binding.box is not None)
    force.setName(WITH_ENERGY if has_energy else NO_ENERGY)
    return force


def make_torch_force(path: str, sha256: str, binding: Binding, has_energy: bool) -> openmm.Force:
    """Return a TorchForce for a bound model; parameters as of `ModelCallable`. TorchForce picks the device itself.

    A System XML that holds a TorchForce is written but crashes the process that reads or copies it (openmmtorch 1.5,
    with any module; docs/serialisation.md says why): store such a simulation as the MM system's XML and add the model
    again, or use PythonForce.
    """
    torchforce = import_torchforce()
    if not has_energy:
        warnings.warn(ENERGY_WARNING, stacklevel=2)
    inputs, species = torch.tensor(binding.inputs), torch.tensor(binding.species)
    targets = torch.isin(inputs, torch.tensor(binding.targets))
    model = bundle.read(path, sha256)[1]
    module = BoundForce(
        model,
        terms_of(model, species, targets, binding.bonds),
        species,
        inputs,
        targets,
        None if binding.box is None else torch.tensor(binding.box, dtype=torch.float64),
        has_energy,
        binding.labels,
        BOX_TOLERANCE,
        MAX_FORCE,
        binding.remove_net_force,
    )
    force = torchforce.TorchForce(torch.jit.script(module.eval()))
    force.setOutputsForces(True)
    force.setUsesPeriodicBoundaryConditions(binding.box is not None)
    force.setName(WITH_ENERGY if has_energy else NO_ENERGY)
    return force


def copied(force: openmm.Force) -> openmm.Force:
    """Return a copy of a force for another System.

    OpenMM's own copy of a TorchForce ends the process (see `make_torch_force`): it is made anew around the same module.

    Parameters
    ----------
    force
        In a System.
    """
    torchforce = sys.modules.get("openmmtorch")  # whoever made a TorchForce in this process has imported it
    if torchforce is None or not torchforce.TorchForce.isinstance(force):
        return copy.deepcopy(force)
    found = torchforce.TorchForce.cast(force)
    made = torchforce.TorchForce(found.getModule(), dict(found.getProperties()))
    made.setOutputsForces(found.getOutputsForces())
    made.setUsesPeriodicBoundaryConditions(found.usesPeriodicBoundaryConditions())
    for k in range(found.getNumGlobalParameters()):
        made.addGlobalParameter(found.getGlobalParameterName(k), found.getGlobalParameterDefaultValue(k))
    for k in range(found.getNumEnergyParameterDerivatives()):
        made.addEnergyParameterDerivative(found.getEnergyParameterDerivativeName(k))
    made.setForceGroup(found.getForceGroup())
    made.setName(found.getName())
    return made
