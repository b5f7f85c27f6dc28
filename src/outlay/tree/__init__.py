"""The token tree, its KV cache, the plan of a pass, and attention over it."""
