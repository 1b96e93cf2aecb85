"""A model behind HTTP: the service, its limits, its page."""
