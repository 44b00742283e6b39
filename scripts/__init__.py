"""The commands of a clone; `scripts/NAME` starts each in the environment that it needs."""
