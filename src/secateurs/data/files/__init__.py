"""Samples that lie in files: images with boxes or masks, tables, recordings."""
