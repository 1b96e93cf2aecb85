"""The values that follow from the data, the machine and the minutes, each with its reason."""
