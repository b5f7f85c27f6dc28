"""Searches: several texts are grown, and what judges them says where the next passes go."""
