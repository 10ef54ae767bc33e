"""What a candidate network is worth, by running it on data, on one process or many."""
