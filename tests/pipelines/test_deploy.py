"""The manifests of deploy/: valid for Kubernetes, without unused rights, and consistent with the profiles."""

import configparser
import re
import shutil
import subprocess
import time
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from star.config.load import load_config

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
VERSION = "1.31"
FOLDERS = ("base", "clean", "multinode", "serving", "study", "work-owner")
FILES = [
    *(file for folder in FOLDERS for file in sorted(DEPLOY.glob(f"{folder}/*.yaml"))),
    DEPLOY / "secrets.example.yaml",
]
OVERLAYS = {"single-user": "kubeflow", "profile": "star"}  # its folder -> the namespace
MANIFESTS = [
    (file.name, document)
    for file in FILES
    if file.name != "kustomization.yaml"
    for document in yaml.safe_load_all(file.read_text())
]
IDS = [f"{file}-{document['kind']}-{document['metadata']['name']}" for file, document in MANIFESTS]
KSERVE_FIELDS = ("minReplicas",)  # fields of KServe's predictor that a pod does not have
CHOWN_JOB = "star-work-chown"


def pod_of(document: dict) -> dict | None:
    """The pod that a manifest creates, as a manifest of kind Pod; None for other kinds."""
    labels = document["metadata"].get("labels", {})
    if document["kind"] in ("Deployment", "StatefulSet", "Job"):
        template = document["spec"]["template"]
        spec, labels = template["spec"], template["metadata"]["labels"]
    elif document["kind"] == "CronJob":
        template = document["spec"]["jobTemplate"]["spec"]["template"]
        spec, labels = template["spec"], template["metadata"]["labels"]
    elif document["kind"] == "TrainingRuntime":
        [job] = document["spec"]["template"]["spec"]["replicatedJobs"]
        template = job["template"]["spec"]["template"]
        spec, labels = template["spec"], template["metadata"]["labels"]
    elif document["kind"] == "InferenceService":
        spec = {key: value for key, value in document["spec"]["predictor"].items() if key not in KSERVE_FIELDS}
    else:
        return None
    metadata = {"name": document["metadata"]["name"], "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


PODS = [pod for _, document in MANIFESTS if (pod := pod_of(document))]


def refused_by_restricted(pod: dict) -> list[str]:
    """What Kubernetes' pod security level `restricted` refuses in a pod, by container and field."""
    everyone = pod["spec"].get("securityContext", {})
    faults = [
        f"volume {volume['name']}"
        for volume in pod["spec"].get("volumes", [])
        if not {"emptyDir", "persistentVolumeClaim", "secret", "configMap"} & set(volume)
    ]
    for container in (*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]):
        own = container.get("securityContext", {})
        rights = {**everyone, **own}
        capabilities = own.get("capabilities", {})
        wanted = {
            "runAsNonRoot": rights.get("runAsNonRoot") is True,
            "runAsUser": rights.get("runAsUser") != 0,
            "seccompProfile": rights.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"),
            "allowPrivilegeEscalation": own.get("allowPrivilegeEscalation") is False,
            "drop": "ALL" in capabilities.get("drop", []),
            "add": set(capabilities.get("add", [])) <= {"NET_BIND_SERVICE"},
            "privileged": not own.get("privileged"),
        }
        faults += [f"{container['name']}: {field}" for field, right in wanted.items() if not right]
    faults += [field for field in ("hostNetwork", "hostPID", "hostIPC") if pod["spec"].get(field)]
    return faults


@pytest.mark.parametrize("pod", PODS, ids=[pod["metadata"]["name"] for pod in PODS])
def test_a_pod_passes_the_level_restricted(pod: dict) -> None:
    if pod["metadata"]["name"] == CHOWN_JOB:  # the exception that docs/kubernetes.md names, in no overlay
        assert refused_by_restricted(pod) == ["chown: runAsNonRoot", "chown: runAsUser", "chown: add"]
    else:
        assert refused_by_restricted(pod) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"securityContext": {"runAsUser": 10001, "runAsNonRoot": True}}, "mlflow: seccompProfile"),
        ({"hostNetwork": True}, "hostNetwork"),
        ({"volumes": [{"name": "host", "hostPath": {"path": "/"}}]}, "volume host"),
    ],
)
def test_the_check_of_the_level_finds_what_it_refuses(change: dict, fault: str) -> None:
    pod = next(pod for pod in PODS if pod["metadata"]["name"] == "mlflow")
    assert refused_by_restricted({**pod, "spec": {**pod["spec"], **change}}) == [fault]


@pytest.mark.parametrize("pod", PODS, ids=[pod["metadata"]["name"] for pod in PODS])
def test_no_pod_gets_a_sidecar_in_the_namespace_of_a_profile(pod: dict) -> None:
    assert pod["metadata"]["labels"]["sidecar.istio.io/inject"] == "false"


def named(kind: str) -> set[str]:
    return {document["metadata"]["name"] for _, document in MANIFESTS if document["kind"] == kind}


@pytest.mark.parametrize(("file", "document"), MANIFESTS, ids=IDS)
def test_a_manifest_is_valid(file: str, document: dict) -> None:
    # Resources of KServe's own and of the Trainer's; the pod of the one is validated below, the other in tests/cluster/test_train_job.py.
    if document["kind"] not in ("InferenceService", "TrainingRuntime"):
        kubernetes_validate.validate(document, VERSION, strict=True)
    if pod := pod_of(document):
        kubernetes_validate.validate(pod, VERSION, strict=True)


def test_the_validation_detects_an_unknown_field() -> None:
    document = next(document for _, document in MANIFESTS if document["kind"] == "Deployment")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**document, "spec": {**document["spec"], "replica": 1}}, VERSION, strict=True)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_kustomization_lists_every_file(folder: str) -> None:
    listed = yaml.safe_load((DEPLOY / folder / "kustomization.yaml").read_text())["resources"]
    assert set(listed) == {file.name for file in (DEPLOY / folder).glob("*.yaml")} - {"kustomization.yaml"}


@pytest.mark.parametrize(("file", "document"), MANIFESTS, ids=IDS)
def test_no_container_can_gain_privileges(file: str, document: dict) -> None:
    pod = pod_of(document)
    for container in (*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]) if pod else ():
        rights = container["securityContext"]
        assert rights["allowPrivilegeEscalation"] is False and rights["capabilities"]["drop"] == ["ALL"]
        if document["kind"] != "TrainingRuntime":  # there a TrainJob sets them
            assert set(container["resources"]) == {"requests", "limits"}
        assert not re.search(r":latest$", container["image"])


def built(folder: Path) -> list[dict]:
    """What `kubectl apply -k` would send: the documents of a kustomization."""
    if not shutil.which("kubectl"):
        pytest.skip("needs kubectl, to build the overlays")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict]]:
    """The namespace of an overlay and its documents, with all the lines that it offers as comments."""
    deploy = tmp_path_factory.mktemp("overlay") / "deploy"
    shutil.copytree(DEPLOY, deploy)
    file = deploy / "overlays" / request.param / "kustomization.yaml"
    text, added = re.subn(r"^  # (- \.\./\.\./[\w-]+)", r"  \1", file.read_text(), flags=re.MULTILINE)
    assert added == len(FOLDERS) - 1
    file.write_text(text)
    return OVERLAYS[request.param], built(file.parent)


def test_an_overlay_stays_in_its_namespace(overlay: tuple[str, list[dict]]) -> None:
    """No namespace is made or labelled, and but for the services of KFP's no other one is named."""
    namespace, documents = overlay
    assert len(documents) > 20 and {document["metadata"]["namespace"] for document in documents} == {namespace}
    assert not {document["kind"] for document in documents} & {"Namespace", "Profile", "ClusterRole"}
    text = yaml.safe_dump_all(documents).replace("seaweedfs.kubeflow.svc.cluster.local", "")
    text = text.replace("kubernetes.io/metadata.name: kubeflow", "")
    [other] = set(OVERLAYS.values()) - {namespace}
    assert not re.search(rf"\.{other}\b(?!\.org|/)|namespace: {other}\b", text)
    subjects = [subject for document in documents for subject in document.get("subjects", [])]
    assert subjects == [{"kind": "ServiceAccount", "name": "star", "namespace": namespace}] * 2


def test_an_overlay_is_valid_and_has_your_image(overlay: tuple[str, list[dict]]) -> None:
    for document in overlay[1]:
        if document["kind"] not in ("InferenceService", "TrainingRuntime"):
            kubernetes_validate.validate(document, VERSION, strict=True)
        if pod := pod_of(document):
            kubernetes_validate.validate(pod, VERSION, strict=True)
            ours = {container["image"] for container in pod["spec"].get("initContainers", pod["spec"]["containers"])}
            assert ours == {"registry.example.com/star-python:1"} or pod["metadata"]["name"] == "postgres"


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_as_shipped_has_no_pod_that_restricted_refuses(name: str) -> None:
    pods = [pod for document in built(DEPLOY / "overlays" / name) if (pod := pod_of(document))]
    assert [pod["metadata"]["name"] for pod in pods if refused_by_restricted(pod)] == [] and len(pods) == 4


def test_the_documented_lines_for_a_registry_with_a_login_reach_our_pods(tmp_path: Path) -> None:
    page = (DEPLOY.parent / "docs" / "kubernetes.md").read_text()
    [lines] = [
        block for block in re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE) if "patches:" in block
    ]
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    overlay = tmp_path / "deploy" / "overlays" / "single-user"
    file = overlay / "kustomization.yaml"
    file.write_text(file.read_text().replace("  # - ", "  - ") + lines)
    documents = built(overlay)
    [account] = [document for document in documents if document["kind"] == "ServiceAccount"]
    # The account's pods are KFP's and those of a TrainJob. PostgreSQL's image is public.
    own = [document for document in documents if document["kind"] not in ("TrainingRuntime", "StatefulSet")]
    pods = [pod["spec"] for document in own if (pod := pod_of(document))]
    with_login = [spec for spec in (account, *pods) if spec.get("imagePullSecrets") == [{"name": "registry"}]]
    assert len(with_login) == 1 + len(pods)


def test_no_label_is_one_that_kfp_selects_its_own_pods_by() -> None:
    """Both may be in one namespace, where KFP on PostgreSQL has pods with the label `app: postgres`."""
    for pod in PODS:
        assert pod["metadata"]["labels"].get("app", "star-").startswith("star-")


def test_the_profile_refers_to_deployed_resources() -> None:
    cluster = load_config(DEPLOY / "profiles" / "h100.yaml").cluster
    secrets = {
        document["metadata"]["name"]: document["stringData"]
        for _, document in MANIFESTS
        if document["kind"] == "Secret"
    }
    for secret, variables in cluster.secrets.items():
        assert set(variables.values()) <= set(secrets[secret])
    assert cluster.work_claim in named("PersistentVolumeClaim")
    assert cluster.service_account in named("ServiceAccount")
    host, port = re.fullmatch(r"http://(.*):(\d+)", cluster.environment["MLFLOW_TRACKING_URI"]).groups()
    service = next(
        document
        for _, document in MANIFESTS
        if document["kind"] == "Service" and document["metadata"]["name"] == "mlflow"
    )
    assert (host, int(port)) == ("mlflow", service["spec"]["ports"][0]["port"])  # in any namespace
    server = next(
        pod_of(document) for file, document in MANIFESTS if file == "mlflow.yaml" and document["kind"] == "Deployment"
    )
    # Where promotions are decided and weights are published: the same store that the champion's pod reads.
    assert cluster.environment["STAR_REGISTRY"].startswith("s3://star/")
    champion = next(pod for pod in PODS if pod["metadata"]["name"] == "star-champion")
    given = {entry["name"]: entry.get("value") for entry in champion["spec"]["initContainers"][0]["env"]}
    for name in ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL"):
        assert given[name] == cluster.environment[name]
    [allowed] = [word for word in server["spec"]["containers"][0]["args"] if word.startswith("--allowed-hosts=")]
    assert f"{host}:{port}" in allowed.partition("=")[2].split(",")
    [accounts] = [pod for pod in PODS if pod["metadata"]["name"] == "mlflow-accounts"]
    named_accounts = re.findall(r'give_account\(client, "([a-z-]+)"', (DEPLOY / "base" / "accounts.py").read_text())
    assert [cluster.environment["MLFLOW_TRACKING_USERNAME"], given["MLFLOW_TRACKING_USERNAME"]] == named_accounts
    made = {
        entry["valueFrom"]["secretKeyRef"]["name"]
        for entry in accounts["spec"]["containers"][0]["env"]
        if "valueFrom" in entry
    }
    assert {name for name in cluster.secrets if "mlflow" in name} < made


def test_the_configuration_has_the_files_that_the_manifests_mount() -> None:
    [generated] = yaml.safe_load((DEPLOY / "base" / "kustomization.yaml").read_text())["configMapGenerator"]
    assert all((DEPLOY / "base" / file).is_file() for file in generated["files"])
    mounted = {
        volume["configMap"]["name"]
        for pod in PODS
        for volume in pod["spec"].get("volumes", [])
        if "configMap" in volume
    }
    written = {document["metadata"]["name"] for _, document in MANIFESTS if document["kind"] == "ConfigMap"}
    assert mounted == {generated["name"], *written}
    server = next(pod for pod in PODS if pod["metadata"]["name"] == "mlflow")["spec"]["containers"][0]
    given = {entry["name"]: entry.get("value") for entry in server["env"]}
    assert given["MLFLOW_AUTH_CONFIG_PATH"] == "/etc/mlflow/auth.ini" and "auth.ini" in generated["files"]
    settings = configparser.ConfigParser()
    settings.read(DEPLOY / "base" / "auth.ini")
    assert settings["mlflow"]["database_uri"] == given["MLFLOW_BACKEND_STORE_URI"]
    assert "admin_password" not in settings["mlflow"]


def test_no_secret_is_in_an_argument_or_in_the_configuration_of_a_container() -> None:
    """Kubernetes writes `$(NAME)` of an argument out, and arguments are in the process list of the node."""
    for pod in PODS:
        for container in (*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]):
            words = [*container.get("command", []), *container.get("args", [])]
            words = [word.replace("$(NAMESPACE)", "") for word in words]
            assert not [word for word in words if "$(" in word or ("://" in word and "@" in word)]


def selected(policy: dict, labels: dict[str, str]) -> bool:
    """Whether a pod of the policies' namespace may connect, by the rules for ingress. A rule for namespaces does not select it."""

    def matches(selector: dict) -> bool:
        wanted = selector.get("matchLabels", {}).items() <= labels.items()
        return wanted and all(rule["key"] in labels for rule in selector.get("matchExpressions", []))

    return any(
        matches(peer["podSelector"])
        for rule in policy["spec"]["ingress"]
        for peer in rule["from"]
        if "podSelector" in peer
    )


def policy_named(name: str) -> dict:
    [policy] = [
        document
        for _, document in MANIFESTS
        if (document["kind"], document["metadata"]["name"]) == ("NetworkPolicy", name)
    ]
    return policy


def test_only_its_clients_reach_the_tracking_server() -> None:
    policy = policy_named("mlflow")
    _, platform = yaml.safe_load_all((DEPLOY / "pipelines" / "h100.yaml").read_text())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    clients = [executor["podMetadata"]["labels"] for executor in executors]
    clients += [pod["metadata"]["labels"] for pod in PODS if pod["metadata"]["name"] == "mlflow-accounts"]
    clients += [{"serving.kserve.io/inferenceservice": "star-champion"}, {"star/mlflow": "client"}]
    assert all(selected(policy, labels) for labels in clients) and len(clients) > 10
    assert not selected(policy, {}) and not selected(policy, {"app": "notebook"})
    server = next(pod for pod in PODS if pod["metadata"]["name"] == "mlflow")
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= server["metadata"]["labels"].items()


def test_the_champion_wants_a_key_and_is_for_its_clients() -> None:
    """Both, because vLLM asks for its key on some routes only."""
    policy = policy_named("champion")
    assert selected(policy, {"star/champion": "client"}) and not selected(policy, {"app": "any"})
    assert not any("ipBlock" in peer for rule in policy["spec"]["ingress"] for peer in rule["from"])
    champion = next(pod for pod in PODS if pod["metadata"]["name"] == "star-champion")["spec"]["containers"][0]
    assert [
        entry for entry in champion["env"] if entry["name"] == "VLLM_API_KEY" and "secretKeyRef" in entry["valueFrom"]
    ]


def rights_of(role: str) -> set[tuple[str, str, str]]:
    """Resource, its name where the rule has one, and verb, of all rules of a role."""
    [rules] = [
        document["rules"]
        for _, document in MANIFESTS
        if (document["kind"], document["metadata"]["name"]) == ("Role", role)
    ]
    return {
        (resource, name, verb)
        for rule in rules
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
        for verb in rule["verbs"]
    }


def test_the_account_has_no_right_that_its_tasks_do_not_use() -> None:
    """The launcher's settings and keys, and the results of Argo's executor; no pod, no other secret, nothing in the whole cluster."""
    assert rights_of("star") == {
        ("configmaps", "kfp-launcher", "get"),
        ("secrets", "mlpipeline-minio-artifact", "get"),
        ("workflowtaskresults", "", "create"),
        ("workflowtaskresults", "", "patch"),
    }
    assert not {document["kind"] for _, document in MANIFESTS} & {"ClusterRole", "ClusterRoleBinding"}


def test_trainings_on_several_nodes_add_the_rights_that_a_train_job_needs() -> None:
    """What tests/cluster/trainer_server.py answers: of jobs and runtimes, of the pods and their logs, and of events."""
    assert rights_of("star-train-jobs") == {
        *(("trainjobs", "", verb) for verb in ("create", "get", "list", "delete")),
        ("trainingruntimes", "", "get"),
        ("pods", "", "list"),
        ("events", "", "list"),
        ("pods/log", "", "get"),
    }


def test_images_of_others_are_named_by_digest() -> None:
    """Except vLLM's, whose digest the one who deploys it looks up (docs/security.md); its version is named."""
    images = {
        container["image"]
        for pod in PODS
        for container in (*pod["spec"].get("initContainers", []), *pod["spec"]["containers"])
    } - {"star-python"}
    unpinned = {image for image in images if not re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", image)}
    assert unpinned == {"vllm/vllm-openai:v0.33.0"} and len(images) > 1


def test_manifests_refer_to_secrets_of_the_template() -> None:
    secrets = {
        document["metadata"]["name"]: document["stringData"]
        for _, document in MANIFESTS
        if document["kind"] == "Secret"
    }
    assert {value for data in secrets.values() for value in data.values()} == {"FILL-IN"}
    for _, document in MANIFESTS:
        for container in (pod_of(document) or {"spec": {"containers": []}})["spec"]["containers"]:
            for entry in container.get("env", []):
                if source := entry.get("valueFrom", {}).get("secretKeyRef"):
                    assert source["key"] in secrets[source["name"]]
                else:
                    assert not re.search("PASSWORD|SECRET|API_KEY|ACCESS_KEY", entry["name"])


def test_the_network_policy_selects_the_pods_of_the_evaluation() -> None:
    policy = next(document for _, document in MANIFESTS if document["metadata"]["name"] == "evaluate")
    _, platform = yaml.safe_load_all((DEPLOY / "pipelines" / "h100.yaml").read_text())
    pod = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-evaluate"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod["podMetadata"]["labels"].items()
    assert not any("ipBlock" in peer for rule in policy["spec"]["egress"] for peer in rule["to"])


PASSWORDS = [
    "p@ss",
    "br[ack]et",
    "a/b",
    "100%",
    "a:b?c=d&e#f+g",
    "$(HOME)",
    " spaced 'and' \"quoted\" ",
    "p\\a",
    "пароль",
]


def refuses_the_password(host: str, port: int) -> bool:
    import psycopg2

    try:
        psycopg2.connect(host=host, port=port, user="mlflow", dbname="mlflow").close()
    except psycopg2.OperationalError as error:
        return "password authentication failed" in str(error)
    return False


def test_mlflow_connects_to_its_database_with_any_password(
    postgres_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the address and the variable of the manifest, as MLflow opens it; only host and port are this machine's."""
    import psycopg2
    from mlflow.store.db.utils import create_sqlalchemy_engine
    from psycopg2.sql import SQL, Literal
    from sqlalchemy.engine import make_url

    container = next(pod for pod in PODS if pod["metadata"]["name"] == "mlflow")["spec"]["containers"][0]
    [address] = [entry["value"] for entry in container["env"] if entry["name"] == "MLFLOW_BACKEND_STORE_URI"]
    [variable] = [
        entry["name"]
        for entry in container["env"]
        if entry.get("valueFrom", {}).get("secretKeyRef", {}).get("name") == "star-postgres"
    ]
    there = make_url(postgres_database)
    here = make_url(address).set(host=there.host, port=there.port).render_as_string(hide_password=False)
    admin = psycopg2.connect(host=there.host, port=there.port, user=there.username, dbname=there.database)
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute("CREATE ROLE mlflow LOGIN")
        cursor.execute("CREATE DATABASE mlflow OWNER mlflow")
        cursor.execute("SHOW hba_file")
        [rules] = cursor.fetchone()
        lines = ["host mlflow all 127.0.0.1/32 scram-sha-256", "local all all trust", "host all all 127.0.0.1/32 trust"]
        copy = "COPY (SELECT unnest({lines})) TO {rules}"
        cursor.execute(SQL(copy).format(lines=Literal(lines), rules=Literal(rules)))
        cursor.execute("SELECT pg_reload_conf()")
        monkeypatch.setenv(variable, "another")
        while not refuses_the_password(there.host, there.port):  # the server reads the rules a moment later
            time.sleep(0.1)
        for password in PASSWORDS:
            cursor.execute(SQL("ALTER ROLE mlflow PASSWORD {password}").format(password=Literal(password)))
            monkeypatch.setenv(variable, password)
            engine = create_sqlalchemy_engine(here)
            engine.connect().close()
            engine.dispose()
    admin.close()


def test_the_profile_of_the_recurring_clean_is_valid(tmp_path: Path) -> None:
    profile = next(document for _, document in MANIFESTS if document["metadata"]["name"] == "star-clean")
    (tmp_path / "profile.yaml").write_text(profile["data"]["profile.yaml"])
    config = load_config(tmp_path / "profile.yaml")
    assert config.keep.s3 == ("s3://star/results",)
    assert config.cluster.checkpoints == load_config(DEPLOY / "profiles" / "h100.yaml").cluster.checkpoints
