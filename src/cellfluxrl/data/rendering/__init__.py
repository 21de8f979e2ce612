"""The steps in which the simulator draws a cell."""
