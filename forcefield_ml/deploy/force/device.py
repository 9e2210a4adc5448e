"""Where a model runs, beside what OpenMM runs on, and in what precision."""

import torch

from forcefield_ml.errors import ConfigError, ModelFileError

GPU_PLATFORMS = ("CUDA", "OpenCL", "HIP")
"""Platforms of OpenMM that keep atoms on a GPU; OpenCL may also be a CPU in disguise."""

TORCH_WITH_CUDA = 'pip install "torch===2.9.1"'
"""The build on PyPI has CUDA 12; three equal signs, since a 2.9.1+cpu would pass for 2.9.1."""


def choose_device(wanted: str = "auto") -> str:
    """Return a device that is there.

    Parameters
    ----------
    wanted
        ``"auto"`` takes CUDA where torch has it, else the CPU; or ``"cpu"``, ``"cuda"``, ``"cuda:1"``.

    Raises
    ------
    ConfigError
        If there is no such device here, or it is of a kind that no model of this package has been tried on.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "auto":
        return "cuda" if n_gpus else "cpu"
    allowed = ["cpu", *(["cuda"] if n_gpus else []), *(f"cuda:{number}" for number in range(n_gpus))]
    if wanted not in allowed:
        missing = "" if n_gpus else f". {why_no_cuda()}"
        raise ConfigError(f"no device {wanted!r}. Allowed: auto, {', '.join(allowed)}{missing}")
    return wanted


def why_no_cuda() -> str:
    """Return why torch sees no CUDA device, and what to do."""
    if torch.version.cuda is None:
        return f"This torch ({torch.__version__}) is built for the CPU alone; where there is a GPU: {TORCH_WITH_CUDA}"
    return (
        f"This torch ({torch.__version__}) is built for CUDA {torch.version.cuda} but sees no device: is there a GPU, "
        "does nvidia-smi list it, is its driver recent enough, is CUDA_VISIBLE_DEVICES empty?"
    )


def openmm_with_cuda() -> str:
    """Return the command that gives OpenMM its CUDA platform, of the CUDA that torch is built for."""
    major = (torch.version.cuda or "12").split(".")[0]
    return f'pip install "openmm[cuda{major}]>=8.6.1"'


def check_precision(dtype: torch.dtype, source: str) -> None:
    """Refuse weights in a precision that a force cannot do with.

    Parameters
    ----------
    dtype
        Of the weights.
    source
        Name of the file for messages.

    Raises
    ------
    ModelFileError
        If it is neither float32 nor float64.
    """
    if dtype not in (torch.float32, torch.float64):
        raise ModelFileError(
            f"the weights in {source} are {dtype}, too coarse for forces; export the model in torch.float32 (fast) or "
            "torch.float64, after model.float() or model.double()"
        )


def mismatch(platform: str, device: str) -> str:
    """Return what to say where OpenMM and the model run on different hardware; empty where they do not.

    Parameters
    ----------
    platform
        Name of the Context's platform.
    device
        Where the model runs.
    """
    import openmm

    if device.startswith("cuda") and platform not in GPU_PLATFORMS:
        there = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
        mend = (
            "make the Context with openmm.Platform.getPlatformByName('CUDA')"
            if "CUDA" in there
            else f"OpenMM has no CUDA platform here: {openmm_with_cuda()}"
        )
        return (
            f"the model runs on {device}, OpenMM on its {platform} platform: positions and forces travel between the "
            f"two at every step and MM is slow. {mend}, or load the model with device='cpu'"
        )
    if device == "cpu" and platform in ("CUDA", "HIP"):
        here = "load the model with device='cuda'" if torch.cuda.is_available() else why_no_cuda()
        return f"OpenMM runs on its {platform} platform, the model on the CPU, which will set the speed. {here}"
    return ""
