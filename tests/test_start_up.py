"""What commands load: those of the registry nothing but MLflow's client, finished stages no library of models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from star.config.experiment import Config
from star.stages import STAGES, register, stage_named

RUN_ALL = """
import json, sys
from star.cli.main import main

loaded = []
for commands in json.load(sys.stdin):
    for command in commands:
        sys.argv = ["star", *command]
        try:
            main()
        except SystemExit as end:
            assert not end.code, command
    loaded.append(sorted({name.partition(".")[0] for name in sys.modules}))
print("\\n" + json.dumps(loaded))
"""
OF_MODELS = {"torch", "transformers", "datasets", "trl", "peft", "accelerate", "tokenizers", "safetensors", "sklearn"}
OF_SERVICES = {"kfp", "kubernetes", "boto3", "botocore", "flask", "openai", "litellm"}


@pytest.mark.slow
def test_the_registry_and_finished_stages_load_no_library_of_models(
    micro: Config, finished: dict[str, Path], tmp_path: Path
) -> None:
    folders = {**finished, "register": tmp_path / "registration"}
    register(micro, refined=finished["refine"], evaluation=finished["evaluate"], out=folders["register"])
    asked = [["models"], ["lineage", "1"], ["promote", "1"], ["registry", "ledger"], ["registry", "reconcile"]]
    stages = [
        [stage.name, "--config", str(Path(__file__).parent / "micro.yaml"), "--out", str(folders[stage.name])]
        + [word for key, source in stage.inputs.items() for word in (f"--{key}", str(finished[source]))]
        for stage in (*STAGES[:-1], stage_named("register"))
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL], input=json.dumps([asked, stages]), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert [done.stderr.count(f"{stage.name}: already done") for stage in STAGES] == [1] * len(STAGES)
    of_registry, of_all = (set(names) for names in json.loads(done.stdout.splitlines()[-1]))
    # pandas and scipy are a third of MLflow's own import.
    assert not of_registry & (OF_MODELS | OF_SERVICES | {"pandas", "scipy"})
    assert not of_all & (OF_MODELS | OF_SERVICES)


@pytest.mark.slow
def test_plugins_of_mlflow_and_later_imports_of_pandas_work(tmp_path: Path) -> None:
    """A store in another package that needs pandas is not lost, and without one pandas can be imported later."""
    code = (
        "import sys; from star.tracking.light_import import import_mlflow_without_pandas as light; light()\n"
        "loaded = 'mlflow' in sys.modules; import pandas, mlflow.data.pandas_dataset\n"
        "from mlflow.tracking._tracking_service.utils import _tracking_store_registry as stores\n"
        "print(loaded, 'odd' in stores._registry, pandas.DataFrame({'a': [1]}).shape)"
    )
    for plugin, said in ((False, "True False (1, 1)"), (True, "False True (1, 1)")):
        if plugin:
            (tmp_path / "odd_store.py").write_text("import pandas\n\n\ndef make(**_): ...\n")
            packaged = tmp_path / "odd_store-1.dist-info"
            packaged.mkdir()
            (packaged / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-store\nVersion: 1\n")
            (packaged / "entry_points.txt").write_text("[mlflow.tracking_store]\nodd = odd_store:make\n")
        path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.stdout.strip() == said, done.stderr
