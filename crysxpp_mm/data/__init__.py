"""Structures from files and tables, and the graph store that holds a whole data set."""
