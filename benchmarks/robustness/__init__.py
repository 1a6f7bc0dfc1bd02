"""Measure LC with its defaults on many nets, optimizers, rates and lengths of a run.

Here belongs what shows where LC is behind other methods; what is fast or slow belongs elsewhere.
"""
