"""The contract of a continual-learning method: what it provides, how it is validated, and how it is found."""
