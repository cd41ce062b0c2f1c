"""What every room stands on: files, schemas, command lines, processes, paths."""
