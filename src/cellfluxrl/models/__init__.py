"""The velocity network, the encoder of compounds and the classifier of mechanisms."""
