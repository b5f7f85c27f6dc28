"""Networks that see: backbones, layers and detectors, each with its cost."""
