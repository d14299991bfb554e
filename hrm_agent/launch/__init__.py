"""The command line: settings, Hydra's plugin, run folders, and errors on one line."""
