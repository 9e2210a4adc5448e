"""What must hold within one entry of refinement vectors, and the vectors computed again by another method."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data_pipeline.dataset.check_entry import atom_findings, relative_error
from data_pipeline.dataset.pack import PackedEntry
from data_pipeline.dataset.recompute import Recomputed
from data_pipeline.refinement.config import RefinementConfig
from data_pipeline.refinement.structure import MIN_DISTANCE, least_distance

AT_ONCE = 256
"""Atoms whose distances to all others are held at a time."""


def pair_findings(entry: PackedEntry, config: RefinementConfig | None) -> list[str]:
    """Return what is wrong with an entry whose arrays have the types and shapes of the schema.

    Parameters
    ----------
    entry
        With every required field.
    config
        The file's; None where it cannot be read, then nothing is compared with it.
    """
    fields, attributes = entry.fields, entry.attributes
    problems = atom_findings(entry)
    mask, partner = fields["target_mask"], fields["has_partner"]
    if (mask & ~partner).any():
        problems.append(f"target_mask marks {int((mask & ~partner).sum())} atoms without a partner")
    if int((partner & ~mask).sum()) != attributes["degenerate_atoms"]:
        problems.append(
            f"{int((partner & ~mask).sum())} atoms with a partner are no targets, degenerate_atoms is "
            f"{attributes['degenerate_atoms']}"
        )
    for name, there in (("refinement", mask), ("native_positions", partner)):
        if fields[name][:, ~there].any():
            problems.append(f"{name} is not zero outside of {'target_mask' if there is mask else 'has_partner'}")
    for frame, places in enumerate(fields["positions"]):
        if least_distance(places.astype(np.float64)) < MIN_DISTANCE * (1 - 1e-4):
            problems.append(f"two atoms of frame {frame} are less than {MIN_DISTANCE} nm apart")
    letters = str(attributes["sequence"]).replace("/", "")
    if len(letters) != len(np.unique(fields["residue_index"])):
        problems.append(f"the sequence has {len(letters)} letters, residue_index another number of residues")
    if (fields["native_positions"] != fields["native_positions"][:1]).any():
        problems.append("native_positions differ between frames")
    n_partners, n_atoms, n_native = int(partner.sum()), len(partner), int(attributes["native_atoms"])
    if n_partners > n_native:
        problems.append(f"{n_partners} atoms have a partner, the native has {n_native} atoms")
    if config is not None:
        for key, share in (("min_matched", n_partners / n_atoms), ("min_covered", n_partners / n_native)):
            if share < getattr(config.match, key):
                problems.append(f"a share of {share:.3f} is below match.{key} = {getattr(config.match, key)}")
        copies = config.augment.copies if attributes["split"] == "train" else 0
        expected = 1 + copies - int(attributes.get("dropped_copies", 0))
        if len(fields["positions"]) != expected:
            problems.append(f"{len(fields['positions'])} frames, where augment.copies = {copies} make {expected}")
    return [f"{entry.name}: {problem}" for problem in problems]


def recompute_vectors(entry: PackedEntry, config: RefinementConfig) -> Recomputed:
    """Compute the vectors of an entry's last frame again, by another search and superposition than made them.

    Neighbours come from all distances, rotations from Horn's quaternions, atom by atom. The last frame is a bent copy
    where there are any.

    Parameters
    ----------
    entry
        As read from the file; its arrays must have been checked.
    config
        The file's.
    """
    fields = entry.fields
    rows = np.flatnonzero(fields["has_partner"])
    own, native = (fields[name][-1][rows].astype(np.float64) for name in ("positions", "native_positions"))
    count = min(config.vectors.n_neighbours, len(rows))
    expected = np.zeros(fields["refinement"][-1].shape)
    for first in range(0, len(rows), AT_ONCE):
        chunk = own[first : first + AT_ONCE]
        distances = np.linalg.norm(chunk[:, None] - own[None], axis=-1)
        nearest = np.argsort(distances, axis=1, kind="stable")[:, :count]
        for atom, chosen in enumerate(nearest, first):
            expected[rows[atom]] = _where_native_lies(native[chosen], own[chosen], native[atom]) - own[atom]
    expected[~fields["target_mask"]] = 0.0
    frame = len(fields["refinement"]) - 1
    return Recomputed(entry.name, frame, {"refinement": relative_error(fields["refinement"][frame], expected)})


def _where_native_lies(
    native: NDArray[np.float64], own: NDArray[np.float64], point: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a point of the native after its (K, 3) surroundings are superposed onto the candidate's.

    References
    ----------
    Horn, Journal of the Optical Society of America A 4, 629 (1987).
    """
    centre, target = native.mean(axis=0), own.mean(axis=0)
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = (native - centre).T @ (own - target)
    matrix = np.array(
        [
            [xx + yy + zz, yz - zy, zx - xz, xy - yx],
            [yz - zy, xx - yy - zz, xy + yx, zx + xz],
            [zx - xz, xy + yx, yy - xx - zz, yz + zy],
            [xy - yx, zx + xz, yz + zy, zz - xx - yy],
        ]
    )
    w, *v = np.linalg.eigh(matrix)[1][:, -1]
    arm = point - centre
    turned: NDArray[np.float64] = arm + 2 * np.cross(v, np.cross(v, arm) + w * arm)
    return turned + target
