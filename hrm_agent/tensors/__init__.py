"""Trees of tensors, files of tensors, and gradients."""
