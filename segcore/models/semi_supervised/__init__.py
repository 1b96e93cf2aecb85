"""Systems that learn from few masks: one published system per file; none imports another."""
