"""Generated against real cells, on evidence that was never optimised."""
