"""What is run: the command line, the demo, the benchmark."""
