"""Examples, run from the repository's folder: `python -m examples.digits --help`."""
