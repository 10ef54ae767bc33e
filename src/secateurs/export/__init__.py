"""Files for runtimes: exported, compared with PyTorch, and variants of any widths."""
