"""What two or more searches share: steps of many texts grown together, resampling, answers and votes."""
