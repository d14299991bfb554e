"""Evaluation: episodes on held-out levels, metrics with intervals, reports, pictures. Nothing trains here."""
