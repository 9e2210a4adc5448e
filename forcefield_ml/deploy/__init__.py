"""From a trained network to a force in OpenMM, in this order.

| folder         | what is in it                                                                   |
|----------------|---------------------------------------------------------------------------------|
| `model_file`   | model.pt: card, archive, TorchScript, and what may be in it                     |
| `force`        | a model bound to a topology, as PythonForce or TorchForce                       |
| `system`       | the four modes: what a model adds to a System and takes out of it               |
| `model`        | `load` and `DeployedModel`: what the user holds                                 |
| `stored`       | System XML read without running code, models found again                        |
| `guards`       | `check` before the first step, `watch` during the run                           |
| `doctor`       | what this installation can do                                                   |
| `integrations` | openmm-ml, ASE                                                                  |
"""
