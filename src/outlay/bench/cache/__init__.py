"""Cache policies, part by part: perplexity after a long prompt beside the bytes held, and kvpress at equal tokens."""
