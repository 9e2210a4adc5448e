"""dataset.h5: written, proved, described."""
