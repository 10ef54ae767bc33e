"""Networks exported and run on a target: latency models, benches, sensitivities, kernel times."""
