"""A whole run in a folder: its settings, its stages and its record."""
