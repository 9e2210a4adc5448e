"""C source -> loaded library: the system's compiler, once per source, flags and processor, kept in a cache."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from forcefield_ml.errors import ForcefieldMLError

logger = logging.getLogger(__name__)

COMPILERS = ("cc", "gcc", "clang")
OPTIMISE = (
    "-O3 -march=native -std=gnu11 -fPIC -fno-math-errno -fno-trapping-math -fno-signed-zeros -fassociative-math "
    "-freciprocal-math -ffp-contract=fast"
).split()
"""No ``-ffinite-math-only``: a NaN must come out as one. No ``-ffast-math`` when linking: it would change the way the
whole process treats denormal numbers."""

OPENMP = """\
int sum(int n)
{
    int total = 0;
#pragma omp parallel for reduction(+ : total)
    for (int i = 0; i < n; i++) total += i;
    return total;
}
"""

SECONDS = 300.0
"""After which a compiler that does not answer is given up."""


class KernelError(ForcefieldMLError):
    """A kernel cannot be compiled or loaded here; the plain PyTorch form serves instead."""


def cache_folder() -> Path:
    """Return where compiled kernels are kept.

    ``FORCEFIELD_ML_CACHE`` if set, else ``forcefield_ml`` in the user's cache folder. A folder that others may write
    to is not trusted: a library loaded from it would run with the user's rights.

    Raises
    ------
    KernelError
        If the folder cannot be made, or belongs to or can be written by somebody else.
    """
    try:
        own = os.environ.get("FORCEFIELD_ML_CACHE")
        home = own or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(home) / ("" if own else "forcefield_ml") / "kernels"
    except RuntimeError as error:  # a user without a home, as containers have
        raise KernelError(f"there is no place for the kernel cache ({error}); set FORCEFIELD_ML_CACHE") from None
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        state = folder.stat()
    except OSError as error:
        raise KernelError(f"the kernel cache {folder} cannot be made ({error}); set FORCEFIELD_ML_CACHE") from None
    if hasattr(os, "getuid") and (state.st_uid != os.getuid() or state.st_mode & 0o022):
        raise KernelError(
            f"the kernel cache {folder} belongs to another user or others may write to it (mode "
            f"{state.st_mode & 0o777:o}); it must be the user's own with mode 700. Set FORCEFIELD_ML_CACHE to one"
        )
    return folder


@functools.cache
def find_compiler() -> tuple[str, str]:
    """Return the C compiler and its version line.

    Raises
    ------
    KernelError
        If there is none.
    """
    wanted = os.environ.get("CC")
    for name in [wanted] if wanted else COMPILERS:
        path = shutil.which(name)
        if path is None:
            continue
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False)
            if answer.returncode == 0 and answer.stdout:
                return path, answer.stdout.splitlines()[0]
    raise KernelError(
        f"no C compiler that works: looked for {wanted or ', '.join(COMPILERS)} on the PATH. Install gcc or clang "
        "(Debian: apt install gcc libc6-dev; conda: c-compiler), or set CC"
    )


@functools.cache
def processor() -> str:
    """Return what ``-march=native`` depends on: the machine and its instruction sets."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "Features")
    lines = [line for line in info.read_text(encoding="utf-8").splitlines() if line.startswith(wanted)]
    return "\n".join([platform.machine(), *lines[:2]])


@functools.cache
def openmp_flags() -> tuple[str, ...]:
    """Return what makes the compiler heed OpenMP's pragmas; nothing where its libraries do not load beside torch.

    OpenMP's calls are left to be resolved by the runtime that torch has loaded: a second one beside it would fight
    with torch's threads for the cores.
    """
    flags = ("-fopenmp",)
    try:
        _load(OPENMP, "openmp", flags)
    except KernelError as error:
        logger.info("compiled kernels will run in one thread: OpenMP cannot be used here (%s)", error)
        return ()
    return flags


def load(source: str, name: str) -> ctypes.CDLL:
    """Compile C source, or find it compiled, and load it.

    Parameters
    ----------
    source
        C, complete.
    name
        For the cache's file name and messages.

    Returns
    -------
    ctypes.CDLL
        Calls release Python's lock.

    Raises
    ------
    KernelError
        If there is no compiler, or it fails.
    """
    return _load(source, name, openmp_flags())


def _load(source: str, name: str, threads: tuple[str, ...]) -> ctypes.CDLL:
    folder = cache_folder()
    compiler, version = find_compiler()
    flags = [*OPTIMISE, *threads]
    key = hashlib.sha256("\0".join([source, *flags, version, processor()]).encode()).hexdigest()
    stem = f"{name}-{key[:24]}"
    for library in folder.glob(f"{stem}-*.so"):
        try:
            return _open(library)
        except OSError as error:  # damaged, or made where another runtime was loaded
            logger.warning("the cached kernel %s does not load (%s); compiling it again", library, error)
            with contextlib.suppress(OSError):
                library.unlink()
    begin = time.perf_counter()
    try:
        library = _compile(compiler, flags, source, folder, stem)
    except (KernelError, OSError) as error:
        raise KernelError(f"kernel {name}: {error}") from None
    try:
        loaded = _open(library)
    except OSError as error:
        with contextlib.suppress(OSError):
            library.unlink()
        raise KernelError(f"kernel {name} does not load: {error}") from None
    logger.info("kernel %s compiled by %s in %.1f s", name, version, time.perf_counter() - begin)
    return loaded


def pointers(*expected: tuple[Tensor, torch.dtype]) -> list[int]:
    """Return where tensors lie, after a check that they are what compiled code takes them for."""
    for tensor, dtype in expected:
        if tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise TypeError(
                f"the kernel works on contiguous {dtype} on the CPU; got {tensor.dtype} with strides "
                f"{tensor.stride()} on {tensor.device}"
            )
    return [tensor.data_ptr() for tensor, _ in expected]


def forget(name: str) -> None:
    """Remove the kernels of a name from the cache."""
    with contextlib.suppress(KernelError):
        for library in cache_folder().glob(f"{name}-*.so"):
            library.unlink(missing_ok=True)


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()[:16]


def _open(library: Path) -> ctypes.CDLL:
    """Load a library whose name ends in its digest: one that was cut short would end the process with a signal."""
    if not library.stem.endswith(_digest(library)):
        raise OSError("it is damaged")
    return ctypes.CDLL(str(library))


def _compile(compiler: str, flags: list[str], source: str, folder: Path, stem: str) -> Path:
    """Compile in a folder of its own, then move the library into the cache in one step."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="build-") as build:
        code, compiled, made = Path(build, "kernel.c"), Path(build, "kernel.o"), Path(build, "kernel.so")
        code.write_text(source, encoding="ascii")
        for command in (
            [compiler, *flags, "-c", str(code), "-o", str(compiled)],
            [compiler, "-shared", str(compiled), "-o", str(made), "-lm"],
        ):
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
            except subprocess.TimeoutExpired:
                raise KernelError(f"{compiler} took longer than {SECONDS:.0f} s") from None
            if done.returncode != 0:
                tail = "\n".join(done.stderr.strip().splitlines()[-5:])
                raise KernelError(f"{' '.join(command)} failed:\n{tail}")
        library = folder / f"{stem}-{_digest(made)}.so"
        os.replace(made, library)
        return library
