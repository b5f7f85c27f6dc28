"""The networks and their weights: loading, tokenizers, chat templates, quantized linear layers."""
