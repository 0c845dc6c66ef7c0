"""What an experiment consists of: the configuration's schema and checks, targets, command lines, status, pruning, the
Slurm executor. Runs in Snakemake's own process, never in a rule's job, and never imports torch. The top package: it may
import all others.
"""
