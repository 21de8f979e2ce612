"""The command line `cellfluxrl`: one module a command."""
