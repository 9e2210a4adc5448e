"""model.pt and the OpenMM forces made of it.

`bundle` writes and reads the file, `card` says what it holds, `script` is what is compiled; `binding` checks a
topology, `openmm_force` makes the two kinds of force, `modes` and `mm` join them to an MM system, `model` is what
the user holds. `guards` looks a simulation over, with `steps`, `order`, `coordinates` and `bound`; `watch` watches it
by the limits of `stability`. `device` says where things run, and `doctor` looks the installation over.
"""
