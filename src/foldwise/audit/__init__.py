"""What is wrong with the data: copies, drift, leaks, labels."""
