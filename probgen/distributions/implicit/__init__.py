"""Distributions given by draws alone."""
