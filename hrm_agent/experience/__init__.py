"""Collects experience and holds it: rollouts, replays, demonstrations."""
