"""From an entry to a system that OpenMM can move: repaired, protonated, in water; relaxed and sampled."""
