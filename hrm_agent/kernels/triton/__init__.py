"""One segment of a core by Triton on a GPU (experimental)."""
