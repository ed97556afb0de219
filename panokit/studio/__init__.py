"""The studio: a page in the browser that composes panoramas, shows them while they are made, and keeps their recipes."""
