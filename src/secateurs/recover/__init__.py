"""Repairing a cut network: statistics, weights, and fine-tuning."""
