"""Claims and what was measured for them: a folder each, run, recorded and drawn by `engine`."""
