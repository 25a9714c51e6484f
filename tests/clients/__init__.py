"""Public clients of the API, run by hand against the simulator: see docs/simulator.md."""
