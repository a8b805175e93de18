"""Measurements: `make bench` runs them all and writes `bench.json`. They assert nothing; numbers are for people.

A case is a module with `measure`, which returns the figures of its rounds by name. Rounds of what is compared are
interleaved in one run, so that whatever else the machine does meets both.
"""
