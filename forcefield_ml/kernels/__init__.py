"""Compiled kernels for the CPU: C source made for a model's shapes, compiled at first use, kept in a cache."""
