"""From scores and costs to a plan within the budgets, and the loop that closes on measurements."""
