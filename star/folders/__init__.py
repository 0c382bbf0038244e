"""Keeps the storage contract: a folder that STAR publishes is complete and verified, or it is not there.

- run_once.py: the contract step by step, with an example; every published folder goes through it
- workspace.py: the folder in which unfinished work waits for a resume, and its lock
- owners.py: closes the home and unfinished work to others, and refuses their links and files
- published_note.py: where a result was published, for the next attempt of its task
- link.py: a second place for a file, without a second copy where the file system can
- reuse.py: a result of the same work that lies in another folder is taken from there
- publish.py: how a finished folder gets to its place, also after a kill between two renames
- manifest.py: what a finished folder says of itself, and how an input is verified
- working_paths.py: the names of all these folders and files, next to the output or in $STAR_WORK
- code_digest.py: the part of the cache key that changes when the code of a stage changes
- shard.py: `--shard i/n`
- s3.py, checkpoints_s3.py, s3_client.py: finished folders and unfinished work in S3
"""
