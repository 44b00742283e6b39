"""The networks of a run, and what trains and evaluates them."""
