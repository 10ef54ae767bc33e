"""Prune a trained PyTorch network to a latency budget measured on the runtime it will run on."""
