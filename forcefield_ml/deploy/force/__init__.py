"""A model bound to a topology, as an OpenMM force.

`binding` checks the topology, `device` says where the model runs, `evaluator` runs it step after step, `openmm_force`
makes the PythonForce or TorchForce, `plugin_repair` loads what the latter needs.
"""
