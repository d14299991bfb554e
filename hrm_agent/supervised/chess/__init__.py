"""Chess positions for puzzle models: boards as tokens, moves as choices, endgames, files of judged positions."""
