"""An encoder-decoder beside a decoder-only model of its size: first token, tokens a second, cache, by lengths."""
