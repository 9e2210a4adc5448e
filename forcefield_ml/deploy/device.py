"""Where a model runs."""

import torch

from forcefield_ml.errors import ConfigError


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
        missing = "" if n_gpus else "; torch sees no CUDA device here, `forcefield-ml doctor` tells more"
        raise ConfigError(f"no device {wanted!r}. Allowed: auto, {', '.join(allowed)}{missing}")
    return wanted
