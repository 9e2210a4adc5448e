"""Reference forces of frames, and the parts of them that other targets need."""
