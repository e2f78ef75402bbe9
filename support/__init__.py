"""What the paper does not say: other people's file formats, checkpoints, reports, and the machine."""
