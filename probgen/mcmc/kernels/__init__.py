"""Transition kernels of Markov chains."""
