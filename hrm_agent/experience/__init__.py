"""Collection and storage of experience: rollouts, replay, demonstrations."""
