"""A model in a System beside MM forces: the four modes, what they add or take away, and what is there already."""
