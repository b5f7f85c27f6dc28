"""What a round that fills several tokens costs: list tasks, puzzles and sentences, with a theory in closed form"""
