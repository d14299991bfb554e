"""How a core is computed where `device=cuda`."""
