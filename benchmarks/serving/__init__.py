"""Size, time and outputs of what is shipped."""
