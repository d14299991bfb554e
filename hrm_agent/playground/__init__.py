"""A local web page on which one watches an agent think, disturbs it, and plays beside it."""
