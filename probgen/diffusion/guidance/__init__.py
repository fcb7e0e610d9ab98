"""Draws of a diffusion given measurements."""
