"""Templates of the cards of models, suites and data sets."""
