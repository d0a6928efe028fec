"""Frozen dataclasses by concern; each field carries the help text its flag shows."""
