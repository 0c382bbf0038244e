"""The packaged profiles and example tools."""
