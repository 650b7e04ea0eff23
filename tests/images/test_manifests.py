"""The manifests of docker/, checked against schemas.

What Kubernetes itself defines (pods, Deployment, Service, Secret, claims) is checked by the package
kubernetes-validate, where it is installed (`make image-check` does that). What KubeRay adds is checked
against a closed schema of the fields that are used here, written after KubeRay's documentation. With
MANIFEST_SCHEMAS=FOLDER the whole schemas count: `ray.io_rayclusters.yaml` and `ray.io_rayjobs.yaml` of
KubeRay's `config/crd/bases`, and `compose-spec.json`.
"""

import json
import os
import re
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft7Validator, Draft202012Validator

DOCKER = Path(__file__).resolve().parents[2] / "docker"
KUBERAY = DOCKER / "kuberay"
SCHEMAS = os.environ.get("MANIFEST_SCHEMAS")
KUBERNETES = "1.37"
TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
POD = {"type": "object"}  # Kubernetes' own schema judges it
PARAMETERS = {"type": "object", "additionalProperties": {"type": "string"}}  # also numbers, as text


def closed(required, **properties):
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


HEAD = closed("rayStartParams template", rayStartParams=PARAMETERS, template=POD)
GROUP = closed(
    "groupName replicas minReplicas maxReplicas rayStartParams template",
    groupName=TEXT,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas=COUNT,
    rayStartParams=PARAMETERS,
    template=POD,
)
CLUSTER = closed(
    "rayVersion authOptions headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    authOptions=closed("mode secretName", mode={"enum": ["token"]}, secretName=TEXT),
    gcsFaultToleranceOptions=closed(
        "redisAddress redisPassword",
        redisAddress=TEXT,
        redisPassword=closed(
            "valueFrom",
            valueFrom=closed("secretKeyRef", secretKeyRef=closed("name key", name=TEXT, key=TEXT)),
        ),
    ),
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=closed(
        "version idleTimeoutSeconds resources",
        version={"enum": ["v1", "v2"]},
        idleTimeoutSeconds=COUNT,
        resources={"type": "object"},
    ),
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": GROUP, "minItems": 1},
)
JOB = closed(
    "entrypoint rayClusterSpec shutdownAfterJobFinishes submissionMode",
    suspend={"type": "boolean"},
    shutdownAfterJobFinishes={"type": "boolean"},
    ttlSecondsAfterFinished=COUNT,
    backoffLimit=COUNT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    entrypoint=TEXT,
    rayClusterSpec=CLUSTER,
)
OWN = {"RayCluster": CLUSTER, "RayJob": JOB}
CRDS = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}


def documents():
    found = []
    for path in sorted(KUBERAY.glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            found.append(pytest.param(document, id=f"{path.stem}-{document['kind']}"))
    return found


def of_kind(kind):
    (document,) = [param.values[0] for param in documents() if param.values[0]["kind"] == kind]
    return document


def cluster_of(document):
    spec = document["spec"]
    return spec["rayClusterSpec"] if document["kind"] == "RayJob" else spec


def problems(schema, document, validator=Draft202012Validator):
    return [
        f"{error.json_path}: {error.message}" for error in validator(schema).iter_errors(document)
    ]


@pytest.mark.parametrize("document", documents())
def test_what_kuberay_adds_has_known_fields_of_the_right_types(document):
    if document["kind"] in OWN:
        assert "ray.io/v1" == document["apiVersion"]
        assert [] == problems(OWN[document["kind"]], document["spec"])


@pytest.mark.parametrize("document", documents())
def test_what_kubernetes_defines_fits_its_schema(document):
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    manifests = [document]
    if document["kind"] in OWN:
        cluster = cluster_of(document)
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        manifests = []
        for group in groups:
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}}
            manifests.append({**pod, **group["template"]})
    for manifest in manifests:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def strict(schema):
    """Return an openAPI schema in which unknown fields are refused, as `kubectl` does."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: strict(part) for name, part in schema.items()}
    if "properties" in schema and "additionalProperties" not in schema:
        schema["additionalProperties"] = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    return schema


@pytest.mark.skipif(
    SCHEMAS is None, reason="MANIFEST_SCHEMAS names no folder with KubeRay's schemas"
)
@pytest.mark.parametrize("kind", CRDS)
def test_the_whole_manifest_fits_kuberays_own_schema(kind):
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    crd = yaml.load((Path(SCHEMAS) / CRDS[kind]).read_text(), loader)
    (schema,) = [
        version["schema"]["openAPIV3Schema"]
        for version in crd["spec"]["versions"]
        if version["name"] == "v1"
    ]
    document = of_kind(kind)
    assert [] == problems(strict(schema["properties"]["spec"]), document["spec"])


@pytest.mark.skipif(
    SCHEMAS is None, reason="MANIFEST_SCHEMAS names no folder with compose-spec.json"
)
def test_the_compose_file_fits_its_specification():
    schema = json.loads((Path(SCHEMAS) / "compose-spec.json").read_text())
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert [] == problems(schema, compose, Draft7Validator)


@pytest.mark.parametrize("kind", OWN)
def test_a_cluster_has_this_ray_a_token_and_its_keys_from_secrets_alone(kind):
    cluster = cluster_of(of_kind(kind))
    assert metadata.version("ray") == cluster["rayVersion"]
    assert "robust-vote-token" == cluster["authOptions"]["secretName"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert [{"secretRef": {"name": "robust-vote-bucket"}}] == container["envFrom"]
        assert "env" not in container
        assert container["resources"]["requests"] == container["resources"]["limits"]


def test_the_shared_cluster_survives_its_head_and_grows_and_shrinks():
    cluster = of_kind("RayCluster")["spec"]
    assert cluster["enableInTreeAutoscaling"]
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    address = cluster["gcsFaultToleranceOptions"]["redisAddress"]
    service = of_kind("Service")
    assert address == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    secret = cluster["gcsFaultToleranceOptions"]["redisPassword"]["valueFrom"]["secretKeyRef"]
    (redis,) = of_kind("Deployment")["spec"]["template"]["spec"]["containers"]
    assert [secret] == [each["valueFrom"]["secretKeyRef"] for each in redis["env"]]


def test_the_example_of_the_secret_holds_no_key():
    values = of_kind("Secret")["stringData"]
    assert {"REPLACE"} == {value for name, value in values.items() if "KEY" in name}


def test_every_file_that_the_dockerfile_copies_is_there_and_each_stage_is_known():
    text = (DOCKER / "Dockerfile").read_text()
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    known = []
    for base, name in stages:
        assert base in {"${BASE}", *known}
        known.append(name)
    for words in re.findall(r"^COPY (.+)$", text, re.MULTILINE):
        *sources, _ = [word for word in words.split() if not word.startswith("--")]
        stage = re.search(r"--from=(\S+)", words)
        if stage:
            assert stage[1] in known
        else:
            assert all((DOCKER.parent / source).exists() for source in sources), words
    assert {"cpu", "gpu"} <= set(known)
