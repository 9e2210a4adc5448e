"""The entry point by which openmm-ml finds this package: ``MLPotential("forcefield-ml", model="model.pt")``.

openmm-ml loads every entry point when it is imported, so that this module imports neither it nor torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forcefield_ml.errors import ConfigError, closest

if TYPE_CHECKING:
    from forcefield_ml.deploy.integrations.mlpotential_impl import ForcefieldMLPotential

OPTIONS = ("model", "device")


class ForcefieldMLFactory:
    """Makes what openmm-ml calls an MLPotentialImpl."""

    def createImpl(self, name: str, **args: Any) -> ForcefieldMLPotential:
        """Return the potential.

        Parameters
        ----------
        name
            As registered, ``forcefield-ml``.
        args
            ``model``: a model.pt, or the name of a model that ships with the package; required.
            ``device``: as for `forcefield_ml.load`.

        Raises
        ------
        ConfigError
            If there is no model, or an option that does not exist.
        ModelFileError
            As `forcefield_ml.load`.
        """
        from forcefield_ml import pretrained
        from forcefield_ml.deploy.integrations.mlpotential_impl import ForcefieldMLPotential

        refuse_unknown(f'MLPotential("{name}")', args, OPTIONS)
        if args.get("model") is None:
            raise ConfigError(
                f'MLPotential("{name}") needs a model: MLPotential("{name}", model="model.pt"), or one that ships with '
                f"the package: {', '.join(pretrained.names())}"
            )
        return ForcefieldMLPotential(args["model"], args.get("device", "auto"))


def refuse_unknown(call: str, given: dict[str, Any], allowed: tuple[str, ...]) -> None:
    """Raise `ConfigError` for an option that does not exist; openmm-ml itself lets misspelt ones pass in silence."""
    for name in given:
        if name not in allowed:
            raise ConfigError(f"{call} has no option {name!r}.{closest(name, allowed)}")
