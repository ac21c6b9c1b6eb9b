"""A small mutation run: one-line mistakes in the maths, each of which tests must notice."""
