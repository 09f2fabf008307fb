"""Configurations that the package adds; found through its entry point."""
