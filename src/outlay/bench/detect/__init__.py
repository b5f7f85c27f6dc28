"""What a detector finds and costs by layers, how often it repeats itself, and a choice that is measured again."""
