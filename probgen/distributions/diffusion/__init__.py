"""Diffusion models of continuous and discrete data."""
