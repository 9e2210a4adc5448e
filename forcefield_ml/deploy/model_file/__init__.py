"""model.pt: `card` says what it is, `archive` and `script_guard` look it over, `bundle` writes and reads it.

`script` is what is compiled to TorchScript.
"""
