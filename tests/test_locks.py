"""The locks: complete, with the sha256 of every file, of the versions in constraints.txt, and used wherever packages are installed."""

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
VLLM_LOCKS = [ROOT / "requirements" / f"{name}.lock" for name in ("vllm", "vllm-cpu")]
LOCKS = sorted(set((ROOT / "requirements").glob("*.lock")) - {*VLLM_LOCKS})
FETCHED = sorted((ROOT / "requirements").glob("real-*.txt"))  # what `make real` takes a file out of
BFCL = ROOT / "star" / "evaluation" / "bfcl" / "requirements.txt"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
INSTALLERS = [ROOT / "Makefile", ROOT / "Dockerfile", *WORKFLOWS]
# In none of the other locks: which build it is depends on the index.
TORCH = re.compile(r"(torch|triton|nvidia-.*|cuda-.*)$")


def entries(lock: Path) -> list[tuple[Requirement, list[str]]]:
    """The requirements of a lock, each with its hashes."""
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", lock.read_text())).splitlines()
    split = [line.split(" --hash=") for line in lines if line.strip()]
    return [(Requirement(name.strip()), [word.strip() for word in hashes]) for name, *hashes in split]


def locked(name: str) -> dict[str, str]:
    """Name to version of a lock."""
    found = entries(ROOT / "requirements" / f"{name}.lock")
    return {canonicalize_name(entry.name): str(entry.specifier).removeprefix("==") for entry, _ in found}


def constraints() -> dict[str, str]:
    split = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {canonicalize_name(name): version for name, version in split}


def test_the_image_is_built_with_a_companys_index_and_keeps_nothing_of_it() -> None:
    """Each step that downloads gets the secrets, and neither these nor a proxy are arguments, copies or variables of a final image."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    stages = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", text, re.DOTALL | re.MULTILINE))
    steps = re.findall(r"^RUN (.*)$", text, re.MULTILINE)
    python = [
        step for step in steps if ("pip install" in step and not step.endswith(" .")) or "bfcl.environment" in step
    ]
    assert len(python) == 6
    for step in python:
        assert {"pip.conf", "netrc", "ca.pem"} <= set(re.findall(r"--mount=type=secret,id=([\w.]+)", step)), step
    [compiler] = [step for step in steps if "apt-get" in step]
    assert {"apt.conf", "sources.list", "ca.pem"} == set(re.findall(r"--mount=type=secret,id=([\w.]+)", compiler))
    for name in {"runtime", "cpu", "cuda", "vllm", "bfcl"}:
        assert not re.search(r"^ENV.*(PIP_|NETRC|PROXY)|^ARG (?!COMMIT)", stages[name], re.MULTILINE | re.IGNORECASE), (
            name
        )
        assert set(re.findall(r"^COPY (.*)$", stages[name], re.MULTILINE)) <= {
            f"--from=build-{kind} /opt/star /opt/star" for kind in ("cpu", "cuda", "vllm")
        }


@pytest.mark.parametrize("lock", [*LOCKS, *VLLM_LOCKS, BFCL, *FETCHED], ids=lambda lock: lock.stem)
def test_every_entry_has_one_version_and_hashes(lock: Path) -> None:
    found = entries(lock)
    assert found
    for entry, hashes in found:
        assert re.fullmatch(r"==[^,*]+", str(entry.specifier)), entry
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", word) for word in hashes), entry


def test_locks_and_constraints_have_the_same_versions() -> None:
    union = {}
    for lock in LOCKS:
        for name, version in locked(lock.stem).items():
            assert constraints().get(name) == version.partition("+")[0], f"{name} of {lock.name}: run `make lock`"
            union[name] = version
    assert set(constraints()) == set(union), "a package of constraints.txt is in no lock: remove it, or run `make lock`"


@pytest.mark.parametrize("lock", VLLM_LOCKS, ids=lambda lock: lock.stem)
def test_vllm_holds_only_what_the_makefile_names_to_other_versions(lock: Path) -> None:
    [held] = re.findall(r"^VLLM_HOLDS := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    versions = locked(lock.stem)
    assert {name for name in versions.keys() & constraints() if versions[name] != constraints()[name]} <= {
        *held.split("|")
    }
    # TRL 1.16 supports vLLM 0.22 to 0.31.
    [vllm] = [version for name, version in versions.items() if name in ("vllm", "vllm-cpu")]
    assert PROJECT["project"]["optional-dependencies"]["vllm"] == [f"vllm=={vllm}; platform_system == 'Linux'"]
    assert (0, 22) <= tuple(map(int, vllm.split(".")[:2])) <= (0, 31)
    [transformers] = [
        word for word in map(Requirement, PROJECT["project"]["dependencies"]) if word.name == "transformers"
    ]
    assert transformers.specifier.contains(versions["transformers"])


def needs(requirements: list[str], extras: set[str] = frozenset()) -> list[Requirement]:
    """The requirements that hold on this machine, those of `star-distill[...]` replaced with what they name."""
    found = []
    for requirement in map(Requirement, requirements):
        markers = [{**default_environment(), "extra": extra} for extra in (extras or {""})]
        if requirement.marker and not any(requirement.marker.evaluate(given) for given in markers):
            continue
        if canonicalize_name(requirement.name) == "star-distill":
            for extra in requirement.extras:
                found += needs(PROJECT["project"]["optional-dependencies"][extra])
        else:
            found.append(requirement)
    return found


@pytest.mark.parametrize(
    ("lock", "extras"), [("dev", ["dev"]), ("image", ["mlflow", "kubernetes"])], ids=["dev", "image"]
)
def test_a_lock_has_everything_that_the_package_needs_here(lock: str, extras: list[str]) -> None:
    """Follows the metadata of the installed packages, from pyproject.toml to the last dependency."""
    project = PROJECT["project"]
    waiting = needs([*project["dependencies"], *(word for e in extras for word in project["optional-dependencies"][e])])
    versions = {**locked("torch-pypi"), **locked(lock)}
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        assert name in versions, f"{name} is in no lock: run `make lock`"
        assert requirement.specifier.contains(versions[name], prereleases=True), requirement
        if name != "torch":  # another index's build has other dependencies
            waiting += needs(metadata.requires(name) or [], set(requirement.extras))
    assert len(seen) > 100


@pytest.mark.skipif(
    os.environ.get("CI") != "true" or Path(sys.prefix) != ROOT / ".venv",
    reason="needs an environment that `make install` has just made, as CI has",
)
def test_a_clean_installation_has_nothing_that_is_not_locked() -> None:
    """pip is the one that `python -m venv` puts into every environment."""
    versions = {name: version for lock in LOCKS for name, version in locked(lock.stem).items()}
    installed = {
        canonicalize_name(package.metadata["Name"]): package.version.partition("+")[0]
        for package in metadata.distributions()
    }
    extra = {name for name, version in installed.items() if versions.get(name, "").partition("+")[0] != version}
    assert extra <= {"pip", "star-distill"}


def test_torch_is_apart() -> None:
    for name in ("dev", "image", "build", "installer", "audit"):
        assert not [package for package in locked(name) if TORCH.match(package)]
    assert {"torch", "triton", "nvidia-nccl-cu13"} <= set(locked("torch-pypi"))
    versions = {str(entry.marker): str(entry.specifier) for entry, _ in entries(ROOT / "requirements/torch-cpu.lock")}
    assert versions == {
        'sys_platform == "darwin"': f"=={constraints()['torch']}",
        'sys_platform == "linux"': f"=={constraints()['torch']}+cpu",
    }


@pytest.mark.parametrize("package", ["pytest", "ruff", "dvc", "pip-audit", "uv", "moto"])
def test_the_image_has_no_tool_of_development(package: str) -> None:
    assert package not in locked("image")


@pytest.mark.parametrize("file", INSTALLERS, ids=lambda file: file.name)
def test_whatever_is_installed_is_locked_and_comes_from_one_index(file: Path) -> None:
    """The exceptions: this package itself, without dependencies, and torch of an index without a lock."""
    text = re.sub(r"\\\n", " ", file.read_text())
    text = text.replace("$(LOCKED)", "--require-hashes --no-deps")
    text = text.replace("$(TORCH)", "--require-hashes --no-deps")  # or, without a lock, the version of constraints.txt
    commands = [
        line for line in text.splitlines() if re.search(r"\bpip (install|download)\b", line) and line[:1] != "#"
    ]
    for command in commands:
        assert "--require-hashes --no-deps" in command or re.search(
            r"--no-deps --no-build-isolation (--editable )?\.", command
        )
        # Without it, setuptools would be fetched anew, without a hash, for a package that has no wheel.
        if re.search(r"(dev|image|vllm|vllm-cpu)\.lock", command):
            assert "--no-build-isolation" in command
    assert "--extra-index-url" not in text and "EXTRA_INDEX" not in text
    assert commands or file.suffix == ".yml"


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_name_actions_by_commit(file: Path) -> None:
    jobs = yaml.safe_load(file.read_text())["jobs"].values()
    used = [step["uses"] for job in jobs for step in job["steps"] if "uses" in step]
    assert used and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action) for action in used)


def test_the_base_image_has_a_digest() -> None:
    [base] = re.findall(r"^ARG BASE=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert re.fullmatch(r"python:\S+@sha256:[0-9a-f]{64}", base)


def page(files: dict[str, str]) -> str:
    """A page of an index: file to sha256."""
    links = (
        f'<a href="/whl/cpu/{file.replace("+", "%2B")}#sha256={digest}">{file}</a><br/>'
        for file, digest in files.items()
    )
    return "<html><body>\n" + "\n".join(links) + "\n</body></html>"


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
@pytest.mark.parametrize("complete", [True, False], ids=["complete", "without macOS"])
def test_the_lock_of_cpu_builds_is_read_from_the_page_of_the_index(complete: bool) -> None:
    version = constraints()["torch"]
    wanted = {
        f"torch-{version}+cpu-cp311-cp311-manylinux_2_28_x86_64.whl": "1" * 64,
        f"torch-{version}+cpu-cp314-cp314-manylinux_2_28_aarch64.whl": "2" * 64,
    } | ({f"torch-{version}-cp312-cp312-macosx_14_0_arm64.whl": "3" * 64} if complete else {})
    unwanted = {
        f"torch-{version}+cpu-cp312-cp312-win_amd64.whl": "4" * 64,
        f"torch-{version}+cpu-cp314-cp314t-manylinux_2_28_x86_64.whl": "5" * 64,
        "torch-2.0.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl": "6" * 64,
    }

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/whl/cpu/torch/" else 404)
            self.end_headers()
            self.wfile.write(page(wanted | unwanted).encode())

        def log_message(self, *words: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/whl/cpu"
        done = subprocess.run([ROOT / "requirements/lock_torch_cpu.sh", address], capture_output=True, text=True)
        server.shutdown()
    if not complete:
        assert (done.returncode, done.stderr) == (
            1,
            f"no file of torch {version} for darwin with a sha256 on the page\n",
        )
        return
    assert done.returncode == 0, done.stderr
    assert re.findall("sha256:(.)", done.stdout) == ["3", "1", "2"]
    assert f"torch=={version}+cpu ; sys_platform == 'linux'" in done.stdout
