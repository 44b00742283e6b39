"""Measures the speed of training; `scripts/bench` is its command."""
