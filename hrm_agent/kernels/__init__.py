"""Fast ways to compute a segment or a window. Tensors in, tensors out: no kernel knows a core or a policy."""
