"""A learned picture codec: its channels ranked, cut off and predicted, beside JPEG and WebP."""
