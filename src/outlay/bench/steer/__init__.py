"""What constraints cost and do to texts, by masks, rejection and AWRS; what is copied, by anchored decoding."""
