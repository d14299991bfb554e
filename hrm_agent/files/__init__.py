"""Files: whole or not at all when written, regular and bounded when read."""
