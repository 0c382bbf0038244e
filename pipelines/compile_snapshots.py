"""Compiles the profiles to deploy/pipelines, so that a review shows what a change does to the tasks.

Run it as `python -m star.pipelines.compile_snapshots`.

The digests of the stages' code are replaced by a fixed word, because any edit of the library changes them. Do not submit these files:
`star pipeline submit` and `star pipeline compile` compile the pipeline for the image that has the code.
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
CODE_DIGEST = re.compile(r"(\bcode:\s+runtimeValue:\s+constant: )[0-9a-f]{64}$", re.MULTILINE)


def snapshot(profile: str) -> str:
    """Returns the compiled pipeline of a profile, with a fixed word in place of each code digest."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "star.yaml"
        compile_pipeline(load_config(profile), file, image=IMAGE)
        return CODE_DIGEST.sub(r"\1digest-of-the-code", file.read_text(encoding="utf-8"))


def main() -> None:
    """Writes the snapshots of all profiles."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, profile in PROFILES.items():
        (FOLDER / f"{name}.yaml").write_text(snapshot(profile), encoding="utf-8")


if __name__ == "__main__":
    main()
