"""What captions of the glyph world make up, by method: CHAIR and recall beside greedy, scene by scene, and speed."""
