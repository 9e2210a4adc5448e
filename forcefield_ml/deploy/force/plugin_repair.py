"""Import TorchForce whichever of torch and openmm came first.

OpenMM loads the kernels of TorchForce when it is imported. They need libraries that only ``import torch`` makes
known to the process, so with openmm first they fail to load, and every Context then says that the platform "does
not support all required kernels". Loading them again once torch is there mends it.
"""

from __future__ import annotations

import ctypes
import logging
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch  # noqa: F401  makes the libraries known that the plugin needs

from forcefield_ml.errors import ForcefieldMLError

INSTALL = 'pip install "openmmtorch==1.5" "torch===2.9.1"'
"""Three equal signs: a build for the CPU alone, 2.9.1+cpu, would pass for 2.9.1; it lacks what TorchForce needs."""


def plugins_folder() -> Path:
    """Return the folder of the plugins that belong to the imported openmm.

    ``Platform.getDefaultPluginsDirectory()`` names a folder that does not serve a pip wheel.
    """
    import openmm

    return Path(openmm.version.openmm_library_path) / "plugins"


def failed_torch_plugins() -> list[str]:
    """Return the messages of plugins of TorchForce that failed to load so far."""
    import openmm

    return [message for message in openmm.Platform.getPluginLoadFailures() if "OpenMMTorch" in message]


OPENCL_NEEDS = "_ZN6OpenMM11ContextImpl12getPositionsERSt6vectorINS_4Vec3ESaIS2_EE"
"""``ContextImpl::getPositions(std::vector<Vec3>&)``, which OpenMM 8.6 no longer has in this form."""


@lru_cache
def refusal(platform: str) -> str:
    """Return why TorchForce must not run on a platform, or nothing.

    The OpenCL kernels of openmmtorch 1.5 call a function that newer releases of OpenMM lack: the first evaluation
    ends the process, without an exception.

    Parameters
    ----------
    platform
        Name of an OpenMM platform.
    """
    import openmm

    if platform != "OpenCL":
        return ""
    library = Path(openmm.version.openmm_library_path) / "libOpenMM.so"
    if not library.is_file() or hasattr(ctypes.CDLL(str(library)), OPENCL_NEEDS):
        return ""
    return (
        f"TorchForce of openmmtorch 1.5 ends the process on the OpenCL platform of OpenMM {openmm.__version__}, which "
        'lacks a function that it calls. Use backend="pythonforce", or the CPU or Reference platform'
    )


@lru_cache(maxsize=1)
def import_torchforce() -> ModuleType:
    """Return the module openmmtorch with its kernels loaded.

    Returns
    -------
    ModuleType
        With the class ``TorchForce``.

    Raises
    ------
    ForcefieldMLError
        If it is not installed or its kernels do not load; the message says which and what to do.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it warns that its own import of simtk is deprecated
    try:
        import openmmtorch
    except ImportError as error:
        raise ForcefieldMLError(
            f"TorchForce is not to be had here ({error}). Install it with: {INSTALL} - or use "
            'backend="pythonforce", which works with any torch'
        ) from None
    finally:
        logging.disable(disabled)
    reload_torch_plugins()
    return openmmtorch


@lru_cache(maxsize=1)
def reload_torch_plugins() -> tuple[str, ...]:
    """Load the plugins of TorchForce that failed to load when OpenMM was imported.

    Returns
    -------
    tuple
        File names of those that load now.

    Raises
    ------
    ForcefieldMLError
        If the one for the Reference and CPU platforms does not.
    """
    import openmm

    mended = []
    for plugin in sorted(plugins_folder().glob("libOpenMMTorch*.so")):
        if not any(plugin.name in message for message in failed_torch_plugins()):
            continue
        try:
            openmm.Platform.loadPluginLibrary(str(plugin))
        except Exception as error:
            if "Reference" in plugin.name:  # the others serve GPUs, which need not be there
                raise ForcefieldMLError(
                    f"the kernels of TorchForce do not load ({error}). Its release fits torch 2.9 alone: {INSTALL} - "
                    'or use backend="pythonforce", which works with any torch'
                ) from None
            continue
        mended.append(plugin.name)
    return tuple(mended)
