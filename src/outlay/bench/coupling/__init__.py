"""Messages in what looks usual: codes of bounded entropy, a player's actions on a grid, tokens of a model."""
