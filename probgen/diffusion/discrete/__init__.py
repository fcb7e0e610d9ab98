"""Corruption of discrete data in steps and in continuous time."""
