"""Profiles (one YAML file per experiment) and example tools, packaged with the library."""
