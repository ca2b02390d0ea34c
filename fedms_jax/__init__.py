"""Simulates federated learning of foundation models on accelerators."""

__version__ = '0.1.0'
