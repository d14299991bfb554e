"""Tensors in trees, in files, and as gradients."""
