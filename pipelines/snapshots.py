"""What the profiles compile to, in deploy/pipelines, so that a change of a task is seen in review: `python -m star.pipelines.snapshots`.

The digests of the stages' code are left out there: any edit of the library changes them, and a file for submission is compiled when it is
submitted (`star pipeline submit`, `star pipeline compile`), for the image that has this code.
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from star.config.load import load_config
from star.pipelines.star_pipeline import IMAGE, compile_pipeline

FOLDER = Path("deploy/pipelines")
PROFILES = {
    "tiny": "tiny",
    "qwen3-0.6b": "qwen3-0.6b",
    "h100": "deploy/profiles/h100.yaml",
    "multinode": "deploy/profiles/multinode.yaml",
}  # name of the file -> profile
DIGEST = re.compile(r"(?<=constant: )[0-9a-f]{64}$", re.MULTILINE)


def snapshot(profile: str) -> str:
    """The compiled pipeline of a profile, with a word in place of each digest of code."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "star.yaml"
        compile_pipeline(load_config(profile), file, image=IMAGE)
        return DIGEST.sub("digest-of-the-code", file.read_text(encoding="utf-8"))


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, profile in PROFILES.items():
        (FOLDER / f"{name}.yaml").write_text(snapshot(profile), encoding="utf-8")


if __name__ == "__main__":
    main()
