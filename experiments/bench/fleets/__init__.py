"""Parts of the benchmark of the fleet, and its figure."""
