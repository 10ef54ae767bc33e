"""Latency: measured in turns, kept in a store, predicted for any widths."""
