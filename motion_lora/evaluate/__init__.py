"""What is scored, who judges, and the sheets that come out."""
