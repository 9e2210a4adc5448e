"""What this installation can do, found by trying, and the command that mends what is missing."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forcefield_ml.deploy.card import package_versions

PACKAGES = (
    "openmm", "torch", "openmmtorch", "openmmml", "vesin-torch", "pdbfixer", "e3nn", "lightning", "numpy", "h5py",
    "gemmi", "mdtraj", "pydantic", "matplotlib",
)  # fmt: skip

OK, OPTIONAL, BROKEN = "ok", "optional", "broken"
"""What a finding says: it works; it is missing and not needed by everyone; nothing goes without it."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes
    ----------
    name
        What was looked at.
    status
        `OK`, `OPTIONAL` or `BROKEN`.
    detail
        What was found.
    mend
        The command that mends it; empty where nothing is to be done.
    """

    name: str
    status: str
    detail: str
    mend: str = ""


def diagnose() -> dict[str, Any]:
    """Look at this installation.

    Returns
    -------
    dict
        ``versions`` (package to version), ``platforms`` (of OpenMM), ``plugin_failures`` (messages of OpenMM, after
        the repair of TorchForce), ``devices`` (of torch), ``findings`` (dicts of `Finding`), ``healthy`` (bool).
    """
    findings: list[Finding] = []
    platforms: list[str] = []
    failures: list[str] = []
    devices: list[str] = []
    try:
        import openmm
        import torch
    except ImportError as error:
        findings.append(Finding("imports", BROKEN, str(error), "make env, or: pip install -e ."))
    else:
        platforms = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
        devices = ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))]
        findings += [_backend(name) for name in ("pythonforce", "torchforce")]
        failures = _failures_after_repair(openmm)
        findings.append(_gpu(platforms, len(devices) > 1))
    findings.append(_kernels())
    findings.append(_aligner())
    return {
        "versions": package_versions(PACKAGES),
        "platforms": platforms,
        "plugin_failures": failures,
        "devices": devices,
        "findings": [asdict(finding) for finding in findings],
        "healthy": not any(finding.status == BROKEN for finding in findings),
    }


def report(diagnosis: dict[str, Any]) -> str:
    """Return a diagnosis as text for a terminal."""
    lines = ["versions   " + ", ".join(f"{name} {version}" for name, version in diagnosis["versions"].items())]
    lines.append("platforms  " + (", ".join(diagnosis["platforms"]) or "none"))
    lines.append("devices    " + (", ".join(diagnosis["devices"]) or "none"))
    for message in diagnosis["plugin_failures"]:
        lines.append(f"not loaded {message.removeprefix('Error loading library ').rpartition('/plugins/')[2]}")
    width = max(len(finding["name"]) for finding in diagnosis["findings"])
    for finding in diagnosis["findings"]:
        lines.append(f"{finding['status']:<10} {finding['name']:<{width}}  {finding['detail']}")
        if finding["mend"]:
            lines.append(f"{'':<10} {'':<{width}}  mend: {finding['mend']}")
    lines.append("all that is needed works" if diagnosis["healthy"] else "something needed is broken; see `mend` above")
    return "\n".join(lines)


def _backend(backend: str) -> Finding:
    """Run a small model through one backend on each CPU platform and compare with the eager forces."""
    from forcefield_ml.deploy.plugin_repair import INSTALL

    needed = BROKEN if backend == "pythonforce" else OPTIONAL
    mend = 'pip install "openmm>=8.6.1"' if backend == "pythonforce" else INSTALL
    try:
        errors = _try_backend(backend)
    except Exception as error:  # whatever fails is the finding
        return Finding(backend, needed, f"{type(error).__name__}: {error}", mend)
    worst = max(errors.values())
    detail = ", ".join(f"{name} {error:.0e}" for name, error in errors.items()) + " relative to the eager forces"
    if not worst < 1e-4:
        return Finding(backend, needed, f"wrong forces: {detail}", mend)
    return Finding(backend, OK, detail)


def _try_backend(backend: str) -> dict[str, float]:
    """Return the relative error of the forces of a methane-like cluster, by platform."""
    import numpy as np
    import openmm
    import torch
    from openmm import app

    from forcefield_ml import models
    from forcefield_ml.deploy import bundle
    from forcefield_ml.deploy.card import make_card
    from forcefield_ml.deploy.model import load
    from forcefield_ml.deploy.script import DeployableModel

    config = {"architecture": "fast", "n_channels": 4, "n_layers": 2, "n_basis": 4, "n_units": 4, "n_first_units": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = models.build(config).eval()
    topology = app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    positions = np.array([[0, 0, 0], [0.11, 0, 0], [0, 0.12, 0], [0, 0, 0.13], [0.2, 0.1, 0.05]])
    for i, symbol in enumerate(("C", "H", "H", "H", "O")):
        topology.addAtom(f"{symbol}{i}", app.Element.getBySymbol(symbol), residue)
    errors = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this model needs no energy
        deployed = load(bundle.write(model, make_card(model, target_atoms="all"), Path(folder) / "model.pt"), "cpu")
        species = torch.tensor([atom.element.atomic_number for atom in topology.atoms()])
        with torch.no_grad():
            predicted = DeployableModel(model)(species, torch.tensor(positions, dtype=torch.float32))
        expected = predicted.forces.numpy()
        for name in ("Reference", "CPU"):
            system = deployed.create_system(topology, backend=backend, allow_residues=["MOL"])
            platform = openmm.Platform.getPlatformByName(name)
            context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
            context.setPositions(positions)
            found = context.getState(forces=True).getForces(asNumpy=True)._value
            errors[name] = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    return errors


def _failures_after_repair(openmm: Any) -> list[str]:
    """Return OpenMM's messages about plugins, without those about TorchForce that its repair has mended."""
    from forcefield_ml.deploy.plugin_repair import import_torchforce

    messages = list(openmm.Platform.getPluginLoadFailures())
    try:
        import_torchforce()
    except Exception:  # its finding tells
        return messages
    return [message for message in messages if "libOpenMMTorchReference" not in message]


def _gpu(platforms: list[str], torch_sees_gpu: bool) -> Finding:
    if "CUDA" in platforms:
        return Finding("gpu", OK, "OpenMM has its CUDA platform" + ("" if torch_sees_gpu else "; torch sees no device"))
    if torch_sees_gpu:
        return Finding(
            "gpu", OPTIONAL, "torch sees a GPU, but OpenMM has no CUDA platform", 'pip install "openmm[cuda12]"'
        )
    return Finding("gpu", OPTIONAL, "none: everything runs on the CPU")


def _kernels() -> Finding:
    """Compile a kernel anew and use it."""
    from forcefield_ml.kernels import compiler

    try:
        found = compiler.find_compiler()
        folder = compiler.cache_folder()
        compiler.load(f"int answer(void) {{ return 42; }} /* {secrets.token_hex(8)} */\n", "doctor").answer()
    except compiler.KernelError as error:
        return Finding(
            "kernels",
            OPTIONAL,
            f"{error}: the plain PyTorch form serves, some ten times slower",
            "apt-get install gcc libc6-dev",
        )
    finally:
        compiler.forget("doctor")
    return Finding("kernels", OK, f"{found[1]}, kept in {folder}")


def _aligner() -> Finding:
    found = [path for path in (shutil.which("blastp"), shutil.which("mmseqs")) if path]
    if found:
        return Finding("aligner", OK, ", ".join(found))
    return Finding(
        "aligner",
        OPTIONAL,
        "neither blastp nor mmseqs: clusters are made by the slower Python aligner",
        "apt-get install ncbi-blast+ (or mmseqs2)",
    )
