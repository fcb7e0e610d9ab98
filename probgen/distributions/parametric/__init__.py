"""Distributions whose parameters are learned or predicted from a context."""
