"""What constraints cost and what they do to texts: masks, rejection and AWRS, beside other libraries."""
