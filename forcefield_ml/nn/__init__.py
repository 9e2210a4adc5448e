"""Layers on the dense neighbour matrix: radial functions, harmonics, convolution, self-interaction, gates."""
