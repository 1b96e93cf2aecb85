"""What a GPU at hand should answer, in order of value, with `segcore` alone."""
