"""Ray: sessions, training, search, data. The only importer of ray."""
