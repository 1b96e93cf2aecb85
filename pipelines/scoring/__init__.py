"""What evaluation and search share: records of single images, the paired bootstrap, a style."""
