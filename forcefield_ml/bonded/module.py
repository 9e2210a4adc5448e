"""Parameters of bonded terms as weights of a model: they begin with the least squares solution and are trained on."""

from collections.abc import Sequence
from typing import Dict, List, NamedTuple, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forcefield_ml.bonded.geometry import N_FUNCTIONS
from forcefield_ml.bonded.table import BondedTable
from forcefield_ml.bonded.terms import KINDS
from forcefield_ml.errors import ConfigError, ModelFileError

ROOM = {"bond": 512, "angle": 1024, "proper": 2048, "improper": 2048}
"""Keys of each kind that a model has room for; 100 proteins have about half as many."""

FLOOR = {"bond": 1e-6, "angle": 1e-6, "proper": 1.0, "improper": 1.0}
"""Part of its square that is added to each function before they are made orthogonal: those of a torsion stay apart,
for what few conformers make alike need not be alike elsewhere."""

UNUSED = torch.iinfo(torch.int64).max
"""Key of a row that is not in use; so keys stay sorted."""


PARTS = ("keys", "reference", "transform", "learnt")
"""What a model holds of each kind: ``keys_bond`` and so on."""


class TermBatch(NamedTuple):
    """The terms that move some target atoms, a row for each function of each term.

    Attributes
    ----------
    rows
        (E, 4) int64, of the targets that the term moves; as many as there are targets where it moves none.
    which
        (E, D) int64, the parameters whose sum is the term's; the last one is zero and stands for none.
    slopes
        (E, 4, 3) gradient of the function with respect to these atoms.
    """

    rows: Tensor
    which: Tensor
    slopes: Tensor


def require_room(kind: str, count: int) -> None:
    """Raise ConfigError if a model has no room for so many keys of a kind."""
    if count > ROOM[kind]:
        raise ConfigError(
            f"the data have {count} kinds of {kind} terms, a model has room for {ROOM[kind]}. Train on fewer kinds of "
            "molecules, or leave model.bonded out"
        )


class Bonded(nn.Module):
    """The tables, and the forces of terms.

    A parameter is its reference value, of the fit, plus what was learnt: ``transform @ learnt``. The transform of a key
    makes one unit of any weight a change of the force by ``scale`` in the mean, so that k and r0, which the fit's own
    functions nearly take for the same, are learnt at the same rate.
    """

    def __init__(self) -> None:
        super().__init__()
        for kind, room in ROOM.items():
            n = N_FUNCTIONS[kind]
            self.register_buffer(f"keys_{kind}", torch.full((room,), UNUSED, dtype=torch.int64))
            self.register_buffer(f"reference_{kind}", torch.zeros(room, n, dtype=torch.float64))
            self.register_buffer(f"transform_{kind}", torch.zeros(room, n, n))
            # one-dimensional: an optimiser that preconditions matrices would take keys for what is mixed
            self.register_parameter(f"learnt_{kind}", nn.Parameter(torch.zeros(room * n)))

    def set_table(self, table: BondedTable, scale: float) -> None:
        """Begin with a fit.

        Parameters
        ----------
        table
            Of `fit`.
        scale
            kJ/mol/nm, root mean square of the target forces.

        Raises
        ------
        ConfigError
            If it has more keys than there is room for.
        """
        for kind in KINDS:
            keys, count = table.keys[kind], len(table.keys[kind])
            require_room(kind, count)
            self.get_buffer(f"keys_{kind}").fill_(UNUSED)[:count] = torch.from_numpy(keys)
            self.get_buffer(f"reference_{kind}").zero_()[:count] = torch.from_numpy(table.values[kind])
            self.get_buffer(f"transform_{kind}").zero_()[:count] = _transform(kind, table, scale)
            self.get_parameter(f"learnt_{kind}").data.zero_()

    def add_table(self, table: BondedTable, scale: float) -> None:
        """Learn more keys; the others keep what they have.

        Parameters
        ----------
        table
            Of keys that the model does not have, as of `fit.unknown`.
        scale
            As for `set_table`.

        Raises
        ------
        ConfigError
            If there is no room for so many keys.
        """
        for kind in KINDS:
            keys, n = self.get_buffer(f"keys_{kind}"), N_FUNCTIONS[kind]
            used = int((keys < UNUSED).sum())
            count = used + len(table.keys[kind])
            require_room(kind, count)
            joined = torch.cat([keys[:used], torch.from_numpy(table.keys[kind]).to(keys)])
            order = joined.argsort()
            keys[:count] = joined[order]
            for what, new in (
                ("reference", torch.from_numpy(table.values[kind])),
                ("transform", _transform(kind, table, scale)),
                ("learnt", torch.zeros(len(table.keys[kind]), n)),
            ):
                width = n * n if what == "transform" else n
                rows = self._part(what, kind).data.view(len(keys), width)
                rows[:count] = torch.cat([rows[:used], new.reshape(-1, width).to(rows)])[order]

    def values(self) -> Dict[str, Tensor]:
        """Return kind to (room, P) float64, the parameters by key."""
        parts = {kind: [self._part(what, kind) for what in PARTS[1:]] for kind in KINDS}
        return {kind: _values(*own) for kind, own in parts.items()}

    def table(self) -> BondedTable:
        """Return the parameters as they are now."""
        found = {kind: _checked(kind, [self._part(what, kind) for what in PARTS]) for kind in KINDS}
        return BondedTable({kind: own[0] for kind, own in found.items()}, {k: own[1] for k, own in found.items()}, {})

    def _part(self, what: str, kind: str) -> Tensor:
        name = f"{what}_{kind}"
        return self.get_parameter(name) if what == "learnt" else self.get_buffer(name)

    @torch.jit.unused
    def forward(self, terms: TermBatch, n_targets: int) -> Tensor:
        """Return (n_targets, 3) the forces of some terms, kJ/mol/nm."""
        # stiff terms nearly cancel: their parameters are summed in double precision
        flat: List[Tensor] = [value.reshape(-1) for value in self.values().values()]
        flat.append(torch.zeros(1, dtype=torch.float64, device=terms.slopes.device))
        values = torch.cat(flat)[terms.which].sum(1)
        pushes = -values[:, None, None] * terms.slopes.double()
        forces = torch.zeros(n_targets + 1, 3, dtype=torch.float64, device=terms.slopes.device)
        return forces.index_add(0, terms.rows.reshape(-1), pushes.reshape(-1, 3))[:n_targets]


def table_of(module: nn.Module) -> "BondedTable | None":
    """Return the bonded terms of a model, compiled or not; None if it has none.

    Raises
    ------
    ModelFileError
        If its tables are not as training writes them.
    """
    stored = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    found: Dict[str, Tensor] = {}
    for place, value in stored.items():
        before, _, name = place.rpartition("bonded.")
        if name.rpartition("_")[0] in PARTS and (not before or before.endswith(".")):
            found.setdefault(name, value)
    if not found:
        return None
    keys, values = {}, {}
    for kind in KINDS:
        keys[kind], values[kind] = _checked(kind, [found.get(f"{what}_{kind}") for what in PARTS])
    return BondedTable(keys, values, {})


def keys_of(module: nn.Module) -> "Dict[str, NDArray[np.int64]] | None":
    """Return kind to the sorted keys that a model knows, compiled or not; None if it has no bonded terms."""
    table = table_of(module)
    return None if table is None else table.keys


def _checked(kind: str, parts: "Sequence[Tensor | None]") -> "Tuple[NDArray[np.int64], NDArray[np.float64]]":
    """Return the keys in use and their parameters; a file may hold anything."""
    keys, reference, transform, learnt = parts
    n = N_FUNCTIONS[kind]
    if keys is None or reference is None or transform is None or learnt is None:
        raise ModelFileError(f"the model's table of {kind} terms lacks a part; export its checkpoint again")
    room = len(keys)
    shapes = [tuple(part.shape) for part in (keys, reference, transform, learnt)]
    if shapes != [(room,), (room, n), (room, n, n), (room * n,)] or keys.dtype != torch.int64:
        raise ModelFileError(f"the model's table of {kind} terms has shapes {shapes}; export its checkpoint again")
    used = keys < UNUSED
    values = _values(reference, transform, learnt)
    rising = bool((keys[1:] > keys[:-1])[used[1:]].all()) and bool((used[:-1] | ~used[1:]).all())
    if not rising or not bool(torch.isfinite(values[used]).all()):
        raise ModelFileError(
            f"the model's table of {kind} terms is out of order or not finite; export its checkpoint again"
        )
    return keys[used].cpu().numpy(), values[used].detach().cpu().numpy()


def _transform(kind: str, table: BondedTable, scale: float) -> Tensor:
    """Return (K, P, P) what makes one unit of any weight a change of the force by `scale` in the mean."""
    gram = torch.from_numpy(table.gram[kind])
    floor = FLOOR[kind] * gram.diagonal(dim1=1, dim2=2).clamp_min(1e-12)
    factor = torch.linalg.cholesky(gram + torch.diag_embed(floor))
    return (scale * torch.linalg.inv(factor).mT).float()


def _values(reference: Tensor, transform: Tensor, learnt: Tensor) -> Tensor:
    """Return the parameters (room, P) in double precision, whatever autocast says."""
    own = (transform.double() * learnt.double().view(len(reference), 1, -1)).sum(2)
    return reference.double() + own
