"""Files compressed with a model, xz and zlib: bytes, seconds, and what won."""
