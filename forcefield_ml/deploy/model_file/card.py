"""The card: what a model.pt is, what it predicts and where it comes from. The keys are declared here alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import forcefield_ml
from forcefield_ml.data.target import TARGET_ATOMS, TARGET_NAMES, quantity_of
from forcefield_ml.errors import ModelFileError, closest
from forcefield_ml.models.fingerprint import weights_sha256
from forcefield_ml.units import FORCE
from forcefield_ml.versions import package_versions

FORMAT = "forcefield-ml-model"
FORMAT_VERSION = 1
CARD_FILE = "card.json"
"""Name of the card inside model.pt."""

PREDICTS = (*TARGET_NAMES, "magnitude")
"""What the vectors are: a target of training (`data.target`), or no vector but a magnitude."""

RECIPROCAL_KEYS = {
    "alpha": "Ewald splitting parameter in 1/nm",
    "tolerance": "of the PME mesh",
    "force_field": "files of the force field that gives the charges",
}
"""What ``reciprocal`` holds."""

MESH_TOLERANCE = 1e-4
"""Sets the mesh on which that sum is computed in a simulation; errors are 1e-4 of it, 1e-5 of the total force."""

KEYS: dict[str, tuple[type, str]] = {
    "format": (str, "always `FORMAT`"),
    "format_version": (int, "`FORMAT_VERSION` of the writer"),
    "architecture": (str, "registered name of the architecture"),
    "model_config": (dict, "rebuilds the eager model with models.build"),
    "units": (dict, "length nm, force kJ/mol/nm; of refinement displacement nm"),
    "neighbours": (dict, "kind (nearest or cutoff), n_neighbours, cutoff in nm, n_layers"),
    "species": (list, "atomic numbers the model accepts"),
    "predicts": (str, "one of `PREDICTS`"),
    "target_atoms": (str, "one of `TARGET_ATOMS`"),
    "energy": (bool, "whether the forces are the gradient of an energy the model returns"),
    "training": (dict, "entries, sequences, residues, dataset_sha256, protocol, n_batches, recipe, seed"),
    "metrics": (dict, "of the validation split, meV/Å (of displacements Å) and degrees"),
    "versions": (dict, "of the packages that trained and exported the model"),
    "created_with": (str, "program and version, date"),
}
"""Key, type and meaning; every key is required."""

OPTIONAL_KEYS: dict[str, tuple[type, str]] = {
    "reciprocal": (dict, "`RECIPROCAL_KEYS`, of a model that leaves the reciprocal-space sum to OpenMM"),
    "weights_sha256": (str, "see `models.fingerprint`; files of former versions lack it"),
    "evaluation": (dict, "what `forcefield-ml evaluate` found; see `judgement`"),
    "verdict": (dict, "what `forcefield-ml validate` says the model is fit for; see `judgement`"),
}
"""Key, type and meaning of what a card may hold besides."""


def make_card(
    model: Any,
    predicts: str = "total",
    target_atoms: str = "solute",
    training: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    versions: dict[str, str] | None = None,
    reciprocal: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Write down what an eager model is.

    Parameters
    ----------
    model
        Of `models.build`; read are its ``config``, ``capabilities`` and weights.
    predicts
        One of `PREDICTS`.
    target_atoms
        One of `TARGET_ATOMS`.
    training, metrics
        As the checkpoint holds them.
    versions
        Of the packages that trained it; those that export it are added.
    reciprocal
        As `data.ForceDataset.reciprocal`, of a model that leaves that part out.

    Returns
    -------
    dict
        A card with all `KEYS` and ``weights_sha256``.

    Raises
    ------
    ModelFileError
        If a value is not allowed.
    """
    config, quantity = dict(model.config), quantity_of(predicts)
    can = model.capabilities
    card = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": str(config.get("architecture", type(model).__name__)),
        "model_config": config,
        "units": {"length": "nm", **({"force": "kJ/mol/nm"} if quantity is FORCE else {quantity.name: "nm"})},
        "neighbours": {
            "kind": can.neighbours,
            "n_neighbours": can.n_neighbours,
            "cutoff": float(can.cutoff),
            "n_layers": can.n_layers,
        },
        "species": sorted(can.elements),
        "predicts": predicts,
        "target_atoms": target_atoms,
        "energy": model.predicts == "energy",
        "training": training or {},
        "metrics": metrics or {},
        "weights_sha256": weights_sha256(model.state_dict()),
        "versions": {"trained": versions or {}, "exported": package_versions()},
        "created_with": f"forcefield-ml {forcefield_ml.__version__}, {datetime.now(UTC):%Y-%m-%d}",
    }
    if reciprocal is not None:
        card["reciprocal"] = {"tolerance": MESH_TOLERANCE, **reciprocal}
    return check_card(card, "the new card")


def parse_card(text: str, source: str) -> dict[str, Any]:
    """Read a card and check it.

    Parameters
    ----------
    text
        JSON.
    source
        Name of the file for messages.

    Returns
    -------
    dict
        The card.

    Raises
    ------
    ModelFileError
        If it is not a card of this program and format version.
    """
    try:
        card = json.loads(text)
    except ValueError as error:
        raise ModelFileError(f"the card in {source} is not JSON ({error}); the file is damaged, get it again") from None
    return check_card(card, source)


def check_card(card: Any, source: str) -> dict[str, Any]:
    """Return the card if it is one that this program can read.

    Parameters
    ----------
    card
        What came out of the JSON.
    source
        Name of the file for messages.

    Returns
    -------
    dict
        The same card.

    Raises
    ------
    ModelFileError
        If it is foreign, of another format version, or lacks keys.
    """
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise ModelFileError(
            f"{source} is not a model of this program: its card has format {found!r}, expected {FORMAT!r}. "
            "Export a checkpoint with: forcefield-ml export CHECKPOINT -o model.pt"
        )
    version = card.get("format_version")
    if version != FORMAT_VERSION:
        age = "newer" if isinstance(version, int) and version > FORMAT_VERSION else "other"
        raise ModelFileError(
            f"{source} has format version {version!r}; this program reads {FORMAT_VERSION}. The file is of an {age} "
            "release: update with `pip install -U forcefield-ml`, or export the checkpoint again with this one."
        )
    for key, (kind, meaning) in {**KEYS, **OPTIONAL_KEYS}.items():
        if key not in card:
            if key in OPTIONAL_KEYS:
                continue
            raise ModelFileError(f"the card in {source} lacks {key!r} ({meaning}); export the checkpoint again")
        if not isinstance(card[key], kind):
            raise ModelFileError(
                f"the card in {source} has {key} = {card[key]!r}, expected {kind.__name__} ({meaning}); "
                "export the checkpoint again"
            )
    for key, allowed in (("predicts", PREDICTS), ("target_atoms", TARGET_ATOMS)):
        if card[key] not in allowed:
            raise ModelFileError(f"the card in {source} has {key} = {card[key]!r}.{closest(card[key], allowed)}")
    if card["predicts"] == "total_minus_reciprocal":
        _check_reciprocal(card.get("reciprocal"), source)
    neighbours = card["neighbours"]
    missing = {"kind", "n_neighbours", "cutoff", "n_layers"} - neighbours.keys()
    if missing:
        raise ModelFileError(f"the card in {source} lacks neighbours: {', '.join(sorted(missing))}; export it again")
    return card


def _check_reciprocal(found: Any, source: str) -> None:
    found = found if isinstance(found, dict) else {}
    for key, meaning in RECIPROCAL_KEYS.items():
        value = found.get(key)
        named = isinstance(value, list) and all(isinstance(file, str) for file in value)
        if not (named if key == "force_field" else isinstance(value, float) and value > 0):
            raise ModelFileError(
                f"the card in {source} has reciprocal.{key} = {value!r} ({meaning}), but a model that predicts "
                "'total_minus_reciprocal' cannot be used without it; export the checkpoint again"
            )
