"""What searches give for their tokens and scores, on chains of arithmetic with a tiny reasoner, beside its_hub."""
