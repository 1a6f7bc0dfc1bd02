"""Error against budgets, epochs and settings, and what training costs in time and memory."""
