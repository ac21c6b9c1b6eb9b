"""What a continual-learning method is, how it is checked and how it is found."""
