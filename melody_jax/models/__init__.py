"""The networks alone: parameters and forward functions, no losses, no files."""
