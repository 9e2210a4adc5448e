"""A model in other programs: openmm-ml and ASE."""
