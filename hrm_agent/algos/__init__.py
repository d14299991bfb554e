"""Algorithms: a loss and an update each, nothing else. They know no environment and no configuration file."""
