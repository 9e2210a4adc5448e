"""How a message depends on the distance: radial bases, cutoff envelope, radial network."""

import math

import torch
from torch import Tensor, nn


class ExponentialNormalBasis(nn.Module):
    """Gaussians in exp(-r): narrow at bond lengths, wide far out, defined at every distance.

    phi_k(r) = exp(-beta (exp(-a r) - mu_k)^2), with mu_k evenly spaced from exp(-a r_max) to exp(-a r_min) and beta
    such that neighbouring Gaussians cross at exp(-1/4). Distances beyond `r_max` are taken as `r_max`'s tail, which is
    smooth.

    Parameters
    ----------
    n_basis
        Number of functions.
    r_max
        nm, where resolution ends.
    r_min
        nm, where it begins: shorter than any bond (H-H in water is 0.15, O-H 0.096).
    decay
        a in 1/nm.

    References
    ----------
    Unke and Meuwly, PhysNet, J. Chem. Theory Comput. 15, 3678 (2019), eq. 7 (the basis; their cutoff is not in it).
    """

    centres: Tensor

    def __init__(self, n_basis: int, r_max: float, r_min: float = 0.07, decay: float = 5.0):
        super().__init__()
        centres = torch.linspace(math.exp(-decay * r_max), math.exp(-decay * r_min), n_basis, dtype=torch.float64)
        self.decay = decay
        self.beta = float(1.0 / (centres[1] - centres[0]) ** 2) if n_basis > 1 else 1.0
        self.register_buffer("centres", centres.to(torch.get_default_dtype()), persistent=False)

    def forward(self, distances: Tensor) -> Tensor:
        """Return (n, n_basis, K) for distances (n, K) in nm."""
        return torch.exp(-self.beta * (torch.exp(-self.decay * distances)[:, None, :] - self.centres[:, None]).square())


def cosine_envelope(distances: Tensor, cutoff: float) -> Tensor:
    """Return a factor that falls from 1 to 0 at the cutoff with zero slope there.

    0.5 (cos(pi r / r_c) + 1) for r < r_c, else 0.

    Parameters
    ----------
    distances
        (...), nm.
    cutoff
        r_c, nm.

    References
    ----------
    Behler and Parrinello, Phys. Rev. Lett. 98, 146401 (2007), eq. 4.
    """
    return 0.5 * (torch.cos(distances * (math.pi / cutoff)) + 1.0) * (distances < cutoff).to(distances.dtype)


class RadialNetwork(nn.Module):
    """The distance-dependent units that a convolution mixes into its weights.

    A weight of the convolution is linear in these units, R(r) = sum_h W_h H_h(r), so that the sum over neighbours can
    be taken before the mixing (`convolution.DenseConvolution`). One hidden layer as in the paper's reference [4].

    Parameters
    ----------
    n_basis
        Functions of the basis.
    n_units
        H's number of units.
    """

    def __init__(self, n_basis: int, n_units: int):
        super().__init__()
        self.hidden = nn.Linear(n_basis, n_units)

    def forward(self, basis: Tensor, envelope: Tensor) -> Tensor:
        """Return (n, n_units, K), zero where the envelope is.

        Parameters
        ----------
        basis
            (n, n_basis, K).
        envelope
            (n, K): the mask, times the smooth cutoff where the graph has one.
        """
        hidden = torch.matmul(self.hidden.weight, basis) + self.hidden.bias[:, None]
        return nn.functional.silu(hidden) * envelope[:, None, :]
