"""How many rounds each commit rule takes on distributions that are known exactly, and what that costs"""
