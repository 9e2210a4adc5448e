"""model.pt: one TorchScript file with its card inside. Written, verified and read here alone."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
import vesin_torch  # noqa: F401  a scripted model that searches neighbours cannot be read before this

from forcefield_ml.bonded.module import keys_of
from forcefield_ml.deploy.force.device import check_precision
from forcefield_ml.deploy.model_file.archive import ADVICE, MAX_FILE, read_archive, replace_card
from forcefield_ml.deploy.model_file.card import CARD_FILE, make_card, parse_card
from forcefield_ml.deploy.model_file.script import DeployableModel
from forcefield_ml.errors import ConfigError, ForceModeError, ModelFileError
from forcefield_ml.files import write_whole
from forcefield_ml.models.fingerprint import weights_sha256
from forcefield_ml.models.model import Model, build

if TYPE_CHECKING:
    from forcefield_ml.training.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

EXPORT_TOLERANCE = 1e-4
"""Largest relative difference (L2) between the forces of an exported float32 model and the eager one."""

GRADIENT_TOLERANCE = 3e-4
"""The same of forces by gradient: by kernels they come from differences in a table and are right to 5e-5, not 1e-5."""


def export(
    checkpoint_path: Path | str,
    out: Path | str,
    head: str | None = None,
    evaluation: Path | None = None,
    validation: Path | None = None,
) -> Path:
    """Make model.pt of a checkpoint.

    Parameters
    ----------
    checkpoint_path
        Of a training run.
    out
        The file to write.
    head
        ``"vector"`` or ``"energy"`` of a checkpoint that holds both; None takes the only one.
    evaluation, validation
        JSON of `evaluate` and report.json of `validate`, made of this model, to put into its card.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ModelFileError
        If the checkpoint cannot be read, the file cannot be written, or it does not reproduce the eager model.
    ConfigError
        If the checkpoint has no such head, or there are two to choose from; or as `judgement.judgements`.
    ForceModeError
        If the model predicts no force vector.
    """
    from forcefield_ml.deploy.model_file.judgement import judgements
    from forcefield_ml.training import checkpoint as checkpoints

    model, stored = checkpoints.load_model(checkpoint_path, head)
    target = checkpoints.target_of(stored.training)
    judged = {**stored.metrics}
    other = judged.pop("energy_head", {})
    card = make_card(
        model,
        predicts="magnitude" if model.predicts == "magnitude" else target.name,
        target_atoms=target.atoms,
        training=stored.training,
        metrics={**judged, **other} if head == "energy" else judged,
        versions=stored.versions,
        reciprocal=stored.training.get("reciprocal"),
    )
    card |= judgements(card["weights_sha256"], evaluation, validation)
    return write(cast(Model, model), card, out)


def amend(
    path: Path | str, out: Path | str, evaluation: Path | None = None, validation: Path | None = None
) -> dict[str, Any]:
    """Write a model.pt with what was found of it in its card; nothing else in the file changes.

    Parameters
    ----------
    path
        The file.
    out
        The file to write, which may be the same; what was there stays untouched unless all goes well.
    evaluation, validation
        As for `export`; each takes the place of a former one.

    Returns
    -------
    dict
        The new card.

    Raises
    ------
    ModelFileError
        As `read`, or if the file cannot be written.
    ConfigError
        As `judgement.judgements`.
    """
    from forcefield_ml.deploy.model_file.judgement import judgements

    data, sha256 = _read_bytes(Path(path))
    card, module, _ = read(path, sha256)
    weights = weights_of(card, module, str(path))
    card = {**card, "weights_sha256": weights, **judgements(weights, evaluation, validation)}
    written = replace_card(data, _text(card), str(path))
    write_whole(Path(out), written, ModelFileError)
    return card


def _text(card: dict[str, Any]) -> str:
    return json.dumps(card, indent=1)


def write(model: Model, card: dict[str, Any], out: Path | str) -> Path:
    """Compile a model, write it with its card, read it back and compare.

    Parameters
    ----------
    model
        Eager, of `models.build`.
    card
        Of `make_card`.
    out
        The file to write; what was there stays untouched unless all goes well.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    ModelFileError
        If the file cannot be written or does not reproduce the eager model, or weights are of half precision.
    ForceModeError
        If the model predicts no force vector.
    """
    if card["predicts"] == "magnitude":
        raise ForceModeError(
            "this model predicts the magnitude of forces and no vectors (the paper's order 0), so OpenMM has no use "
            "for it. Judge it with `forcefield-ml evaluate CHECKPOINT DATASET`, or train one of order 1 or 2"
        )
    out = Path(out)
    original = DeployableModel(model).eval()
    check_precision(original.precision.dtype, "this model")
    scripted = torch.jit.script(original)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        torch.jit.save(scripted, str(temporary), _extra_files={CARD_FILE: _text(card)})
        _, loaded, _ = read(temporary)
        _compare(original, loaded, card)
        weights_of(card, loaded, str(out))
        os.replace(temporary, out)
    except (OSError, RuntimeError) as error:
        raise ModelFileError(
            f"cannot write {out}: {error}. A file of that name that was there before is untouched; see that its "
            "folder exists, can be written to and has room, then export again"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
    return out


def _compare(eager: DeployableModel, loaded: torch.jit.ScriptModule, card: dict[str, Any]) -> None:
    """Refuse a file whose forces are not the eager model's."""
    difference = _difference(eager, loaded, card)
    if not difference < _tolerance(card):
        raise ModelFileError(
            f"the compiled model differs from the eager one by {difference:.1e} (L2, relative), more than "
            f"{_tolerance(card):g}; nothing was written. Please report this with the checkpoint"
        )


def _tolerance(card: dict[str, Any]) -> float:
    return GRADIENT_TOLERANCE if card["energy"] else EXPORT_TOLERANCE


def _difference(eager: DeployableModel, loaded: torch.jit.ScriptModule, card: dict[str, Any]) -> float:
    """Return by how much forces, and the energy, differ (L2, relative) on a jittered lattice of the model's species."""
    generator = torch.Generator().manual_seed(0)
    side = torch.arange(4) * 0.2
    lattice = torch.cartesian_prod(side, side, side)
    positions = lattice + 0.04 * torch.rand(lattice.shape, generator=generator)
    species = torch.tensor(card["species"])[torch.arange(64) % len(card["species"])]
    targets = torch.arange(64) < 20
    device = next(eager.parameters()).device
    species, positions, targets = species.to(device), positions.to(device), targets.to(device)
    with torch.no_grad():
        expected = eager(species, positions, None, targets)
        for _ in range(3):  # the third call runs what the TorchScript optimiser made of the first two
            found = loaded(species, positions, None, targets)
    pairs = [(found.forces, expected.forces)]
    if card["energy"]:
        pairs.append((found.energy, expected.energy))
    if any(value is None for pair in pairs for value in pair):
        raise ForceModeError("the model returned no forces; only models that predict force vectors are exported")
    return max(float((one - other).norm() / other.norm().clamp_min(1e-12)) for one, other in pairs)


def read_card(path: Path | str) -> dict[str, Any]:
    """Return the card of a model.pt without loading the model."""
    data, _ = _read_bytes(Path(path))
    return parse_card(read_archive(data, str(path)).card, str(path))


def read(
    path: Path | str, sha256: str | None = None, device: str = "cpu"
) -> tuple[dict[str, Any], torch.jit.ScriptModule, str]:
    """Read and verify a model.pt; nothing in it is run, and nothing in it can do more than compute.

    Parameters
    ----------
    path
        The file.
    sha256
        What its hash must be, in hexadecimal; None accepts any.
    device
        Where the model goes.

    Returns
    -------
    card : dict
        As declared in `card`.
    module : torch.jit.ScriptModule
        The model with its neighbour search (`script.DeployableModel`), in eval mode.
    sha256 : str
        Of the file.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, foreign, of another format version, not the one that was meant, or holds
        code that does more than compute (`archive.read_archive`).
    """
    path = Path(path)
    data, found = _read_bytes(path)
    if sha256 is not None and found != sha256:
        raise ModelFileError(
            f"{path} is not the model that this force was made with: its SHA-256 is {found[:16]}..., expected "
            f"{sha256[:16]}.... Put the original file there, or make the force again from the new one"
        )
    archive = read_archive(data, str(path))
    card = parse_card(archive.card, str(path))
    try:
        module = torch.jit.load(io.BytesIO(archive.torchscript), map_location=device)
    except RuntimeError as error:
        raise ModelFileError(
            f"TorchScript of torch {torch.__version__} cannot read {path} (written with torch "
            f"{card['versions'].get('exported', {}).get('torch', 'unknown')}): {str(error).splitlines()[0]}. {ADVICE}"
        ) from None
    told = bool(card["model_config"].get("bonded", False))
    if told != (keys_of(module) is not None):
        raise ModelFileError(
            f"{path}: the card says bonded: {str(told).lower()}, the weights say otherwise; without its bonded terms a "
            "model gives a tenth of the force. Export its checkpoint again"
        )
    return card, module.eval(), found


class Loaded(NamedTuple):
    """A model.pt, read.

    Attributes
    ----------
    module
        The file's TorchScript.
    model
        The same network in eager form, which the engine runs faster; None if the file's weights do not fit this
        version's network, whose TorchScript then serves.
    """

    module: torch.jit.ScriptModule
    model: Model | None


@lru_cache(maxsize=4)
def read_cached(path: str, sha256: str, device: str) -> Loaded:
    """Return the model of `read`, kept between calls; the hash makes the cache safe."""
    card, module, _ = read(path, sha256, device)
    return Loaded(module, eager(card, module))


def _weights(card: dict[str, Any], module: torch.jit.ScriptModule) -> dict[str, torch.Tensor]:
    """Return the weights and buffers in a file under the names that they have in an eager model.

    Raises
    ------
    ConfigError, KeyError
        If the file was written by a version whose network has other settings or parts.
    """
    stored = module.state_dict()  # which holds, unlike an eager model's, what can be computed anew, too
    return {name: stored[f"model.{name}"] for name in build(card["model_config"]).state_dict()}


def checkpoint(path: Path | str) -> Checkpoint:
    """Return the checkpoint that a model.pt was exported from, less what only its own run needed to go on.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ModelFileError
        As `read`, or if its weights are not those of its card or of this version's network.
    """
    from forcefield_ml.training.checkpoint import Checkpoint

    card, module, _ = read(path)
    weights_of(card, module, str(path))
    try:
        weights = _weights(card, module)
    except (ConfigError, KeyError) as error:
        raise ModelFileError(
            f"{path} holds a network that this version does not have ({error}), so that no training can begin with it. "
            "Take a model of this version, or the version of forcefield-ml that made it"
        ) from None
    versions = card["versions"].get("trained", {})
    return Checkpoint(card["model_config"], weights, card["training"], card["metrics"], versions)


def weights_of(card: dict[str, Any], module: torch.jit.ScriptModule, source: str) -> str:
    """Return the fingerprint of a model.pt's weights, the same as of the checkpoint that it was exported from.

    Of a network that this version does not have the card's word is taken or, where it says nothing, all that the
    TorchScript holds.

    Parameters
    ----------
    card, module
        Of `read`.
    source
        Name of the file for messages.

    Raises
    ------
    ModelFileError
        If the card names other weights than the file has.
    """
    told = card.get("weights_sha256")
    try:
        found = weights_sha256(_weights(card, module))
    except (ConfigError, KeyError):
        return str(told or weights_sha256(module.state_dict()))
    if told not in (None, found):
        raise ModelFileError(
            f"the weights in {source} are not those of its card: their fingerprint is {found[:16]}..., the card has "
            f"{str(told)[:16]}.... Weights or card were changed after the export, and what the card tells is of no "
            "worth; export the checkpoint again"
        )
    return found


def eager(card: dict[str, Any], module: torch.jit.ScriptModule) -> Model | None:
    """Return the network of a model.pt in eager form, with its weights.

    It must give the forces of the file's TorchScript, also by the kernels as this machine's compiler made them;
    otherwise, or if the file was written by a version whose network has other parts, there is none.

    Parameters
    ----------
    card, module
        Of `read`.
    """
    precision: torch.Tensor = module.precision
    try:
        model = build(card["model_config"])
        model.load_state_dict(_weights(card, module))
    except (ConfigError, KeyError, RuntimeError) as error:
        logger.warning(
            "this model was made by another version (%s); its own TorchScript serves, which is slower. Train again "
            "with this version for the fast engine",
            f"it has no {error}" if isinstance(error, KeyError) else str(error).strip().splitlines()[-1].strip(),
        )
        return None
    model = model.to(precision.device, precision.dtype).eval()
    difference = _difference(DeployableModel(model).to(precision.device).eval(), module, card)
    if not difference < _tolerance(card):
        logger.warning(
            "the engine's forces differ from the file's TorchScript by %.1e (L2, relative), more than %g; the "
            "TorchScript serves, which is slower. Please report this",
            difference,
            _tolerance(card),
        )
        return None
    return model


def _read_bytes(path: Path) -> tuple[bytes, str]:
    """Return the file's content and its SHA-256: what is hashed is what is loaded."""
    try:
        kind = path.stat()
        if not stat.S_ISREG(kind.st_mode) or kind.st_size > MAX_FILE:
            what = f"has {kind.st_size} bytes" if stat.S_ISREG(kind.st_mode) else "is no file"
            raise ModelFileError(f"{path} {what}; a model.pt is a file of at most {MAX_FILE} bytes. {ADVICE}")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelFileError(
            f"there is no model file {path}. Export one with: forcefield-ml export CHECKPOINT -o model.pt"
        ) from None
    except OSError as error:
        raise ModelFileError(f"cannot read the model file {path}: {error.strerror or error}") from None
    return data, hashlib.sha256(data).hexdigest()
