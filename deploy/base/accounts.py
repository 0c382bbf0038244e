"""Makes the accounts of MLflow's own authentication, with the rights that they use. Run it again at any time: it changes what differs.

The job `mlflow-accounts` runs it without arguments, for the accounts of the pipeline and of the champion's server. People get theirs in
MLflow's pod. The password is made up and printed; the same command again makes another one:

    kubectl -n NAMESPACE exec deploy/mlflow -- python /etc/mlflow/accounts.py person NAME     # reads everything
    kubectl -n NAMESPACE exec deploy/mlflow -- python /etc/mlflow/accounts.py promoter NAME   # and promotes
    kubectl -n NAMESPACE exec deploy/mlflow -- python /etc/mlflow/accounts.py remove NAME
    kubectl -n NAMESPACE exec deploy/mlflow -- python /etc/mlflow/accounts.py administrator   # another password for MLflow's administrator

An account without a role reads everything, and changes only what it created itself. MLflow's administrator, whose password both containers
have in their environment, is used for nothing else.
"""

import os
import secrets
import sys
import time

import requests
from mlflow.exceptions import MlflowException
from mlflow.server import get_app_client
from mlflow.server.auth.client import AuthServiceClient

WAIT_SECONDS = 300
# Role -> kind of resource -> right, for all resources of the kind. Versions can be changed, but not deleted, and so neither can models.
# An alias is deleted by who may delete the model, which is why MANAGE is needed for it.
PROMOTE = {"registered_model": "MANAGE", "registered_model_version": "EDIT"}
ROLES = {
    "star-pipeline": {"experiment": "EDIT", "run": "MANAGE", **PROMOTE},  # the pre-flight deletes the run that it made
    "star-promoter": PROMOTE,
}
WORKSPACE = "default"


def wait_for(server: str) -> None:
    """Waits until the server answers."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            requests.get(f"{server}/health", timeout=5).raise_for_status()
            return
        except requests.RequestException:
            if time.monotonic() > deadline:
                raise
            time.sleep(2)


def give_account(client: AuthServiceClient, name: str, *, password: str, role: str | None) -> None:
    """Makes an account, or gives it another password, and gives it exactly the role (none: it only reads)."""
    try:
        client.get_user(name)
    except MlflowException:
        client.create_user(name, password)
    else:
        client.update_user_password(name, password)
    ours = {one.name: one.id for one in client.list_user_roles(name) if one.name in ROLES}
    for other in set(ours) - {role}:
        client.unassign_role(name, ours[other])
    if role and role not in ours:
        client.assign_role(name, role_id(client, role))


def role_id(client: AuthServiceClient, name: str) -> int:
    """The id of a role, which is made or corrected first."""
    found = next((role for role in client.list_roles(WORKSPACE) if role.name == name), None)
    role = found or client.create_role(WORKSPACE, name)
    granted = {grant.resource_type: grant for grant in client.list_role_permissions(role.id)}
    for kind, right in ROLES[name].items():
        if kind not in granted:
            client.add_role_permission(role.id, kind, "*", right)
        elif granted[kind].permission != right:
            client.update_role_permission(granted[kind].id, right)
    return role.id


def main(arguments: list[str]) -> None:
    """Makes the accounts that the arguments name; without arguments those of the cluster's own programs."""
    server = os.environ["MLFLOW_TRACKING_URI"]
    wait_for(server)
    client = get_app_client("basic-auth", server)
    match arguments:
        case []:
            give_account(client, "star-pipeline", password=os.environ["PIPELINE_PASSWORD"], role="star-pipeline")
            give_account(client, "star-serving", password=os.environ["SERVING_PASSWORD"], role=None)
            print("the accounts star-pipeline and star-serving are there")
        case ["person" | "promoter" as kind, name]:
            password = secrets.token_urlsafe(18)
            give_account(client, name, password=password, role="star-promoter" if kind == "promoter" else None)
            print(f"MLFLOW_TRACKING_USERNAME={name}\nMLFLOW_TRACKING_PASSWORD={password}")
        case ["remove", name]:
            client.delete_user(name)
        case ["administrator"]:
            name, before = os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]
            password = secrets.token_urlsafe(18)
            client.update_user_password(name, password, current_password=before)
            print(f"MLFLOW_TRACKING_PASSWORD={password}\nput it into the Secret star-mlflow-admin and restart MLflow")
        case _:
            raise SystemExit("usage: accounts.py [person NAME | promoter NAME | remove NAME | administrator]")


if __name__ == "__main__":
    main(sys.argv[1:])
