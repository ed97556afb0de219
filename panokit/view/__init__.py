"""Panoramas on a page that a browser shows without a network: alone, side by side, or many as a gallery.

Nothing in the core imports this package. `panokit view` writes the page to a file, and a notebook gets it as an element.
"""
