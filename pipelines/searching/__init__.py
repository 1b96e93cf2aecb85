"""What a search found: the trial that is taken, the front of the best, one page."""
