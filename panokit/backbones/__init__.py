"""Adapters to the libraries that models come from."""
