"""What `outlay compare` costs over bare runs, and lm_eval beside its own hf model type."""
