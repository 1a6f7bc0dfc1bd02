"""Models, interruptions and settings that nobody tuned for: what comes through intact."""
