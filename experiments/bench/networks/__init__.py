"""What the benchmark `network` measures: loads, runs of ours and of SimGrid, and a figure."""
