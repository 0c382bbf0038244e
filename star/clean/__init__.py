"""Removes what nothing needs any more: old results, unfinished work, downloads, sent spools, logs, and copies in S3."""
