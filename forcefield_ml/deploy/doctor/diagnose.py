"""What this installation can do, found by trying, and the command that mends what is missing."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from forcefield_ml.deploy.doctor import findings
from forcefield_ml.versions import package_versions

PACKAGES = (
    "openmm", "openmm-cuda-12", "openmm-cuda-13", "torch", "openmmtorch", "openmmml", "ase", "vesin-torch", "pdbfixer",
    "e3nn", "lightning", "numpy", "h5py", "gemmi", "mdtraj", "pydantic", "matplotlib",
)  # fmt: skip


def diagnose() -> dict[str, Any]:
    """Look at this installation.

    Returns
    -------
    dict
        ``versions`` (package to version), ``platforms`` (of OpenMM), ``plugin_failures`` (messages of OpenMM, after
        the repair of TorchForce), ``devices`` (of torch), ``backend`` (``name`` and ``reason`` of what would be used,
        empty where there is none), ``findings`` (dicts of `Finding`), ``healthy`` (bool).
    """
    found = [findings.look_at_requirements(), *findings.look_at_imports()]
    platforms: list[str] = []
    failures: list[str] = []
    devices: list[str] = []
    backend = {"name": "", "reason": ""}
    if not any(finding.status == findings.BROKEN for finding in found[1:]):
        import openmm
        import torch

        from forcefield_ml.deploy.force.openmm_force import choose_backend

        platforms = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
        devices = ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))]
        failures = _failures_after_repair()
        try:
            backend = dict(zip(("name", "reason"), choose_backend("auto"), strict=True))
        except Exception as error:
            backend["reason"] = str(error)
        for name in ("pythonforce", "torchforce"):
            found += findings.look_at_backend(name, platforms)
        found += [findings.look_at_gpu(platforms), *findings.look_at_plugins(failures)]
        found.append(findings.look_at_kernels())
    found += [findings.look_at_aligner(), findings.look_at_openmmml(), findings.look_at_ase()]
    return {
        "versions": package_versions(PACKAGES),
        "platforms": platforms,
        "plugin_failures": failures,
        "devices": devices,
        "backend": backend,
        "findings": [asdict(finding) for finding in found],
        "healthy": not any(finding.status == findings.BROKEN for finding in found),
    }


def report(diagnosis: dict[str, Any]) -> str:
    """Return a diagnosis as text for a terminal."""
    lines = ["versions   " + ", ".join(f"{name} {version}" for name, version in diagnosis["versions"].items())]
    lines.append("platforms  " + (", ".join(diagnosis["platforms"]) or "none"))
    lines.append("devices    " + (", ".join(diagnosis["devices"]) or "none"))
    for message in diagnosis["plugin_failures"]:
        lines.append(f"not loaded {message.removeprefix('Error loading library ').rpartition('/plugins/')[2]}")
    backend = diagnosis["backend"]
    lines.append(f"backend    {backend['name'] or 'none'}" + (f": {backend['reason']}" if backend["reason"] else ""))
    width = max(len(finding["name"]) for finding in diagnosis["findings"])
    for finding in diagnosis["findings"]:
        lines.append(f"{finding['status']:<10} {finding['name']:<{width}}  {finding['detail']}")
        if finding["mend"]:
            lines.append(f"{'':<10} {'':<{width}}  mend: {finding['mend']}")
    lines.append("all that is needed works" if diagnosis["healthy"] else "something needed is broken; see `mend` above")
    return "\n".join(lines)


def _failures_after_repair() -> list[str]:
    """Return OpenMM's messages about plugins that do not load, also not once torch is imported."""
    import openmm

    from forcefield_ml.deploy.force.plugin_repair import import_torchforce, reload_torch_plugins

    messages = list(openmm.Platform.getPluginLoadFailures())
    try:
        import_torchforce()
    except Exception:  # its finding tells
        return messages
    mended = reload_torch_plugins()
    return [message for message in messages if not any(name in message for name in mended)]
