"""The engine: holds runs of methods, batches their work, streams their text and counts what they spend."""
