"""Programs that stand on the four files, and that the paper does not describe: python -m beyond.<program> --help."""
