"""Measure the library, and what it is compared with."""
