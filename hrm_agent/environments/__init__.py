"""Vector environments by id or callable, in the wrappers that agents need."""
