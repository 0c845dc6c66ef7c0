"""Shared by all packages: errors, files, digests, progress, names, hashing, options. Imports no other package."""
