"""A small mutation test: one-line mistakes in the maths, each of which must make a test fail."""
