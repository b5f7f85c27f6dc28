"""What each weight and cache format costs in perplexity, beside the same weights in float32."""
