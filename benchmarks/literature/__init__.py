"""The literature's tables: every semantic architecture on its published recipe."""
