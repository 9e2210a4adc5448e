"""From pairs of a candidate structure and its native to the vectors that refine the candidate."""
