"""What the two-stage instance systems share: boxes, anchors, proposals, pooling, masks."""
