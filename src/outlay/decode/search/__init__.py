"""Searches: several texts are grown, and what rates them says where the next passes go."""
