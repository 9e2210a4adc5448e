"""The paper's losses (section 4.2): Huber on the norm of a vector's error, and on a scalar."""

from __future__ import annotations

from torch import Tensor
from torch.linalg import vector_norm


def tensor_huber(predicted: Tensor, target: Tensor, delta: float) -> Tensor:
    """Return the mean over atoms of the tensor Huber loss.

    With e = ||v_p - v_t||, the loss of an atom is e² / 2 where e <= delta, else (e - delta / 2) delta. It depends
    on the error's norm alone, so it does not change when both vectors are rotated; a Huber loss on each component
    would.

    Parameters
    ----------
    predicted
        v_p, (n, 3), any unit.
    target
        v_t, (n, 3), in the unit of `predicted`.
    delta
        Where the loss turns from quadratic to linear, in the same unit.

    Returns
    -------
    Tensor
        (), in the unit squared.
    """
    return _huber((predicted - target).square().sum(dim=-1), delta)


def scalar_huber(predicted: Tensor, target: Tensor, delta: float) -> Tensor:
    """Return the mean over atoms of the Huber loss on numbers, for models that predict the magnitude alone.

    Parameters
    ----------
    predicted
        (n,), any unit.
    target
        (n,), in the same unit.
    delta
        Where the loss turns from quadratic to linear, in the same unit.

    Returns
    -------
    Tensor
        (), in the unit squared.
    """
    return _huber((predicted - target).square(), delta)


def magnitude(vectors: Tensor) -> Tensor:
    """Return the norms, (n,), of vectors (n, 3): the target of a model of order 0."""
    return vector_norm(vectors, dim=-1)


def _huber(square: Tensor, delta: float) -> Tensor:
    if not delta > 0.0:
        raise ValueError(f"delta must be positive, not {delta}")
    # The root's gradient is infinite at zero, and `where` would pass its NaN on: keep its argument away from zero.
    error = square.clamp_min(delta * delta).sqrt()
    return (square.clamp_max(delta * delta) / 2 + (error - delta) * delta).mean()
