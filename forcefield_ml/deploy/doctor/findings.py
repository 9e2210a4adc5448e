"""One look each at a part of the installation: what was found, and the command that mends it."""

from __future__ import annotations

import re
import secrets
import shutil
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

from forcefield_ml.deploy.doctor import trial

IMPORTED = ("numpy", "openmm", "torch", "vesin_torch", "gemmi", "h5py", "pdbfixer")
"""Packages with compiled parts, or that need them: that they are there does not say that they load."""

OK, OPTIONAL, BROKEN = "ok", "optional", "broken"
"""What a finding says: it works; it is missing and not needed by everyone; nothing goes without it."""

FIRST_GOOD_OPENMM = (8, 6, 1)
"""Before it the worker thread of PythonForce gave NaN coordinates beside torch on CUDA (openmm PR 5412)."""

ENTRY_POINTS, ENTRY = "openmmml.potentials", "forcefield-ml"


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


def look_at_requirements() -> Finding:
    """Compare what is installed with what the package asks for."""
    try:
        wanted = [line for line in metadata.requires("forcefield-ml") or [] if "extra ==" not in line]
    except metadata.PackageNotFoundError:
        return Finding(
            "packages", OPTIONAL, "forcefield-ml runs from its folder, it is not installed", "pip install -e ."
        )
    lacking, found = [], 0
    for line in wanted:
        name = re.split(r"[^\w.-]", line, maxsplit=1)[0]
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            lacking.append((line, "missing"))
            continue
        least = re.search(r">=\s*([\d.]+)", line)
        if least and _numbers(version) < _numbers(least[1]):
            lacking.append((line, f"{version} is too old"))
        found += 1
    if lacking:
        detail = "; ".join(f"{line}: {what}" for line, what in lacking)
        return Finding("packages", BROKEN, detail, "pip install " + " ".join(f'"{line}"' for line, _ in lacking))
    return Finding("packages", OK, f"the {found} that are needed are there")


def look_at_imports() -> list[Finding]:
    """Import what has compiled parts; what fails is found."""
    findings = []
    for name in IMPORTED:
        try:
            import_module(name)
        except Exception as error:  # a broken library raises OSError, ImportError or anything else
            distribution = name.replace("_", "-")
            findings.append(
                Finding(
                    f"import {name}",
                    BROKEN,
                    f"{type(error).__name__}: {error}",
                    f"pip install --force-reinstall --no-deps {distribution}",
                )
            )
    return findings


def look_at_backend(backend: str, platforms: list[str]) -> list[Finding]:
    """Run a small model through one backend on each platform and compare with the eager forces.

    The platforms that are always there are needed; those on GPUs, OpenCL above all, may be listed and not work.
    """
    from forcefield_ml.deploy.force.plugin_repair import INSTALL

    mend = 'pip install "openmm>=8.6.1"' if backend == "pythonforce" else INSTALL
    if backend == "torchforce" and not _version("openmmtorch"):
        return [Finding(backend, OPTIONAL, "openmmtorch is not installed; PythonForce serves as well", mend)]
    findings = []
    always = [name for name in platforms if name in ("Reference", "CPU")]
    for tried in (always, *([name] for name in platforms if name not in always)):
        needed = BROKEN if backend == "pythonforce" and tried == always else OPTIONAL
        name = backend if tried == always else f"{backend} on {tried[0]}"
        errors = trial.run_apart(backend, tried)
        if "error" in errors:
            advice = mend if tried == always else _avoid(tried[0])
            findings.append(Finding(name, needed, _with_reason(backend, errors["error"]), advice))
            if tried == always:
                break  # nothing is to be learnt on other platforms
            continue
        detail = ", ".join(f"{where} {error:.0e}" for where, error in errors.items()) + " relative to the eager forces"
        good = all(error < trial.TOLERANCE for error in errors.values())  # NaN is not
        findings.append(Finding(name, OK, detail) if good else Finding(name, needed, f"wrong forces: {detail}", mend))
    return findings


def _avoid(platform: str) -> str:
    return (
        f"choose another platform in your scripts, openmm.Platform.getPlatformByName('CPU'); {platform} is not needed"
    )


def _with_reason(backend: str, message: str) -> str:
    """Return an error's message, or the pair of versions that explains it."""
    torch_version = _version("torch")
    if backend == "torchforce" and not torch_version.startswith("2.9."):
        return f"openmmtorch {_version('openmmtorch')} needs torch 2.9, this is {torch_version}; PythonForce serves"
    if backend == "torchforce" and "+cpu" in torch_version:
        return f"openmmtorch needs libraries that torch {torch_version} lacks, also without a GPU; PythonForce serves"
    return message


def look_at_plugins(failures: list[str]) -> list[Finding]:
    """Sum up by kind what does not load, and whether that matters."""
    from forcefield_ml.deploy.force.device import openmm_with_cuda

    kinds: dict[str, list[str]] = {}
    for message in failures:
        name = Path(message.removeprefix("Error loading library ").partition(": ")[0]).name
        kind = next((kind for kind in ("OpenCL", "CUDA", "HIP", "Torch") if kind in name), "others")
        kinds.setdefault(kind, []).append(message)
    findings = []
    for kind, messages in kinds.items():
        reason = messages[0].removeprefix("Error loading library ").partition(": ")[2].strip()
        detail, mend = f"{len(messages)} do not load: {reason}", "pip install --force-reinstall --no-deps openmm"
        if kind in ("OpenCL", "HIP"):
            detail, mend = f"{detail}; only OpenMM's {kind} platform needs them", ""
        elif kind == "CUDA":
            mend = "install the NVIDIA driver (nvidia-smi must work)" if "libcuda.so" in reason else openmm_with_cuda()
        elif kind == "Torch":
            continue  # those for the CPU: the look at TorchForce tells
        findings.append(Finding(f"{kind} plugins", OPTIONAL, detail, mend))
    return findings


def look_at_gpu(platforms: list[str]) -> Finding:
    """Tell whether both halves, torch and OpenMM, have the GPU, and which does not."""
    import torch

    from forcefield_ml.deploy.force.device import TORCH_WITH_CUDA, openmm_with_cuda, why_no_cuda

    driver = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()
    torch_sees, platform = torch.cuda.is_available(), "CUDA" in platforms
    if not driver and not torch_sees:
        return Finding("gpu", OPTIONAL, "no NVIDIA driver: everything runs on the CPU")
    if not torch_sees:
        mend = TORCH_WITH_CUDA if torch.version.cuda is None else ""
        return Finding("gpu", OPTIONAL, f"there is a GPU, but torch does not use it. {why_no_cuda()}", mend)
    if not platform:
        detail = "torch sees a GPU, but OpenMM has no CUDA platform: MM would run on the CPU"
        return Finding("gpu", OPTIONAL, detail, openmm_with_cuda())
    if _numbers(_version("openmm")) < FIRST_GOOD_OPENMM:
        detail = f"OpenMM {_version('openmm')} gives NaN coordinates with PythonForce beside torch on CUDA"
        return Finding("gpu", BROKEN, detail, openmm_with_cuda())
    if _version("openmmtorch") and not _version("openmm-torch-cuda-12"):
        detail = "torch and OpenMM have it; TorchForce has no CUDA kernel"
        return Finding("gpu", OPTIONAL, detail, 'pip install "openmmtorch[cuda12]==1.5" "torch===2.9.1"')
    return Finding("gpu", OK, f"torch (CUDA {torch.version.cuda}) and OpenMM both have it")


def look_at_kernels() -> Finding:
    """Compile a kernel anew and use it."""
    from forcefield_ml.kernels import compiler

    try:
        found = compiler.find_compiler()
        folder = compiler.cache_folder()
        compiler.load(f"int answer(void) {{ return 42; }} /* {secrets.token_hex(8)} */\n", "doctor").answer()
    except compiler.KernelError as error:
        mend = "apt-get install gcc libc6-dev"
        if "kernel cache" in str(error):
            mend = "export FORCEFIELD_ML_CACHE=/a/folder/of/your/own"
        return Finding("kernels", OPTIONAL, f"{error}: the plain PyTorch form serves, some four times slower", mend)
    finally:
        compiler.forget("doctor")
    return Finding("kernels", OK, f"{found[1]}, kept in {folder}")


def look_at_aligner() -> Finding:
    """Look for the programs that compare sequences."""
    found = [path for path in (shutil.which("blastp"), shutil.which("mmseqs")) if path]
    if found:
        return Finding("aligner", OK, ", ".join(found))
    return Finding(
        "aligner",
        OPTIONAL,
        "neither blastp nor mmseqs: clusters are made by the slower Python aligner",
        "apt-get install ncbi-blast+ (or mmseqs2)",
    )


def look_at_openmmml() -> Finding:
    """Look whether openmm-ml is there and would find this package."""
    announced = metadata.entry_points(group=ENTRY_POINTS, name=ENTRY)
    if not _version("openmmml"):
        detail = f'openmm-ml is not installed: MLPotential("{ENTRY}") is not to be had, the rest works'
        return Finding("openmm-ml", OPTIONAL, detail, 'pip install "openmmml>=1.8"')
    if not announced:
        detail = (
            f"openmm-ml {_version('openmmml')} does not find this package: it was installed without its entry point"
        )
        return Finding("openmm-ml", OPTIONAL, detail, "pip install --no-deps --force-reinstall . (or -e .)")
    try:
        next(iter(announced)).load()
    except Exception as error:
        detail = f"the entry point does not load: {type(error).__name__}: {error}"
        return Finding("openmm-ml", OPTIONAL, detail, "pip install --no-deps --force-reinstall . (or -e .)")
    return Finding("openmm-ml", OK, f'{_version("openmmml")} finds MLPotential("{ENTRY}", model=...)')


def look_at_ase() -> Finding:
    """Look for ASE, which the calculator needs."""
    if _version("ase"):
        return Finding("ase", OK, _version("ase"))
    return Finding(
        "ase", OPTIONAL, "not installed: there is no ASE calculator, the rest works", 'pip install "ase>=3.25"'
    )


def _version(name: str) -> str:
    """Return the version of an installed package; empty if it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
