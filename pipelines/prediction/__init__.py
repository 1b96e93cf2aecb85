"""Images in, masks and a manifest out."""
