"""Algorithms: a loss and an update each, independent of environments and configuration files."""
