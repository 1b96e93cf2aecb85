"""Instance architectures: one published system per file; none imports another."""
