"""What every package uses: errors, files, digests, progress, names, hashing, command-line types. Imports no other
package.
"""
