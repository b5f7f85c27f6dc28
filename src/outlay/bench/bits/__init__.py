"""The bits of a text's logits: alone, in wide passes, with drafts, in company, in every instruction set."""
