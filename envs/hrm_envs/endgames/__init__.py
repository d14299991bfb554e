"""Exact chess endgames with three and four pieces: tables by retrograde analysis, and an environment on them."""
