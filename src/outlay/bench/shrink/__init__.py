"""What each method that shrinks weights loses, by bits a weight."""
