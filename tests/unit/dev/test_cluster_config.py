"""What the cluster's programs are told, and what is made without them."""

import hashlib
import io
import ipaddress
import json
import os
import socket
import tarfile
import tomllib
from pathlib import Path

import pytest
import yaml

from dev.cluster import (
    __main__,
    addons,
    control_plane,
    fake_nodes,
    gpu,
    images,
    lifecycle,
    network,
    network_policies,
    node,
    packages,
    paths,
    preflight,
    runtime,
    teardown,
    tools,
    toolset,
)
from dev.cluster.commands import ClusterError, run
from dev.cluster.gpu import Gpus


def test_containerd_and_buildkit_share_a_socket_and_a_namespace():
    containerd = tomllib.loads(runtime.containerd_config())
    worker = tomllib.loads(runtime.buildkit_config())["worker"]["containerd"]
    assert worker["address"] == containerd["plugins"]["io.containerd.server.v1.grpc"]["address"]
    assert worker["namespace"] == "k8s.io"
    assert worker["networkMode"] == "host"
    assert worker["gcpolicy"] == [
        {"all": True, "maxUsedSpace": "30GB", "minFreeSpace": "10GB"},
    ]


def test_the_image_store_outlives_down_and_the_runtime_state_does_not():
    containerd = tomllib.loads(runtime.containerd_config())
    assert Path(containerd["root"]).is_relative_to(paths.STORE)
    assert Path(containerd["state"]).is_relative_to(paths.RUN)
    assert not paths.STORE.is_relative_to(paths.CLUSTER)


def test_the_pods_network_leaves_no_iptables_rule():
    ptp, portmap = json.loads(network.cni_config())["plugins"]
    assert "ipMasq" not in ptp
    assert portmap["backend"] == "nftables"
    assert node.kubelet_config()["makeIPTablesUtilChains"] is False
    assert node.kube_proxy_config()["mode"] == "nftables"


def test_the_kubelet_neither_evicts_nor_deletes_images_on_a_full_disk():
    config = node.kubelet_config()
    assert config["imageGCHighThresholdPercent"] == 100
    assert list(config["evictionHard"]) == ["memory.available"]


def test_pods_do_not_get_name_servers_that_only_the_host_reaches():
    host = "search lan\nnameserver 127.0.0.53\nnameserver 192.0.2.1\n"
    assert node.resolv_conf(host) == "search lan\nnameserver 192.0.2.1\n"


def test_the_audit_policy_is_about_writes():
    rules = json.loads(control_plane.audit_policy())["rules"]
    assert rules[0] == {"level": "None", "verbs": ["get", "list", "watch"]}
    assert rules[1:] == [{"level": "Metadata"}]


@pytest.mark.parametrize("name", ["coredns", "metrics-server"])
@pytest.mark.parametrize("servers", ["nameserver 192.0.2.1\n", ""])
def test_manifests_are_filled_in(name, servers, tmp_path, monkeypatch):
    monkeypatch.setattr(node, "RESOLV_CONF", tmp_path / "resolv.conf")
    node.RESOLV_CONF.write_text(servers)
    documents = {d["kind"]: d for d in yaml.safe_load_all(addons.manifest(name))}
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == addons.image(name)
    if name == "coredns":
        assert documents["Service"]["spec"]["clusterIP"] == network.DNS_SERVICE
        assert ("forward ." in documents["ConfigMap"]["data"]["Corefile"]) == bool(servers)


def test_every_component_is_stopped_in_order():
    extra = network_policies.component()
    names = [component.name for component in [*lifecycle.components(), extra]]
    assert sorted(names) == sorted([*teardown.ORDER, "containerd", "buildkitd"])
    assert len(set(names)) == len(names)


def test_mounts_are_found_innermost_first():
    lines = [
        "1 0 8:1 / / rw - ext4 /dev/vda rw",
        "2 1 0:1 / /src/x/.dev/a rw - tmpfs tmpfs rw",
        r"3 2 0:2 / /src/x/.dev/a/b\040c rw - tmpfs tmpfs rw",
        "4 1 0:3 / /src/x/.devices rw - tmpfs tmpfs rw",
    ]
    below = teardown.mounts_below([Path("/src/x/.dev")], "\n".join(lines))
    assert below == ["/src/x/.dev/a/b c", "/src/x/.dev/a"]


def test_gpu_labels_are_those_of_feature_discovery():
    made = gpu.labels(Gpus(2, "NVIDIA-H100-80GB-HBM3", 81559))
    assert made["nvidia.com/gpu.present"] == "true"
    assert made["nvidia.com/gpu.count"] == "2"
    assert made["nvidia.com/gpu.product"] == "NVIDIA-H100-80GB-HBM3"
    assert made["nvidia.com/gpu.memory"] == "81559"
    assert made["nvidia.com/gpu.family"] == "hopper"
    assert (made["nvidia.com/gpu.compute.major"], made["nvidia.com/gpu.compute.minor"]) == (
        "9",
        "0",
    )


@pytest.mark.parametrize(
    ("product", "family"),
    [("Tesla-T4", "turing"), ("NVIDIA-A100-SXM4-40GB", "ampere"), ("NVIDIA-Unheard-Of", None)],
)
def test_gpu_family(product, family):
    assert gpu.labels(Gpus(1, product, 1)).get("nvidia.com/gpu.family") == family


def test_fake_pods_have_addresses_of_their_own():
    config = json.loads(addons.kwok_config())
    fake = ipaddress.ip_network(config["options"]["cidr"])
    assert fake.num_addresses > 60 * 250
    assert f"--config={addons.KWOK_CONFIG}" in addons.kwok().argv
    assert addons.kwok().files == {addons.KWOK_CONFIG: addons.kwok_config()}
    for others in (network.POD_RANGE, network.SERVICE_RANGE, f"{network.NODE_ADDRESS}/32"):
        assert not fake.overlaps(ipaddress.ip_network(others))


def test_a_fake_node_is_tainted_and_carries_its_gpus():
    made = fake_nodes.manifest(3, Gpus(count=8))
    assert made["metadata"]["name"] == "fake-3"
    assert made["metadata"]["labels"]["type"] == "kwok"
    assert made["spec"]["taints"] == [fake_nodes.TAINT]
    assert made["status"]["allocatable"]["nvidia.com/gpu"] == "8"
    without = fake_nodes.manifest(3, Gpus(count=0))
    assert not [label for label in without["metadata"]["labels"] if "nvidia" in label]
    assert "nvidia.com/gpu" not in without["status"]["capacity"]


def test_an_image_is_a_layout_whose_digests_hold(tmp_path):
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    layer = images.layer({"/bin/program": program})
    content = images.layout("localhost/x:1", layer, {"Entrypoint": ["/bin/program"]})
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}

    def blob(descriptor):
        data = files[f"blobs/{descriptor['digest'].replace(':', '/')}"]
        assert hashlib.sha256(data).hexdigest() == descriptor["digest"].removeprefix("sha256:")
        assert len(data) == descriptor["size"]
        return data

    entry = json.loads(files["index.json"])["manifests"][0]
    assert entry["annotations"]["io.containerd.image.name"] == "localhost/x:1"
    manifest = json.loads(blob(entry))
    config = json.loads(blob(manifest["config"]))
    assert config["config"]["Entrypoint"] == ["/bin/program"]
    assert config["rootfs"]["diff_ids"] == [manifest["layers"][0]["digest"]]
    with tarfile.open(fileobj=io.BytesIO(blob(manifest["layers"][0]))) as archive:
        assert [(m.name, m.mode) for m in archive.getmembers()] == [("bin/program", 0o755)]
    os.utime(program, (1, 1))
    assert images.layer({"/bin/program": program}) == layer


def test_images_that_lost_their_name_are_useless():
    listing = """\
REF TYPE DIGEST SIZE PLATFORMS LABELS
localhost/app:dev t sha256:new 1 MiB linux/amd64 -
sha256:config-of-new t sha256:new 1 MiB linux/amd64 -
sha256:config-of-replaced t sha256:replaced 1 MiB linux/amd64 -
localhost/llm-operator-dev/pause:now t sha256:pause 1 MiB linux/amd64 -
localhost/llm-operator-dev/pause:before t sha256:pause-before 1 MiB linux/amd64 -
sha256:config-of-pause t sha256:pause 1 MiB linux/amd64 -
sha256:config-of-pause-before t sha256:pause-before 1 MiB linux/amd64 -
"""
    assert images.useless(listing, keep="now") == [
        "localhost/llm-operator-dev/pause:before",
        "sha256:config-of-pause-before",
        "sha256:config-of-replaced",
    ]


@pytest.fixture
def tool_modules(tmp_path, monkeypatch):
    for module in ("containers", "kubernetes"):
        (tmp_path / module).mkdir()
        (tmp_path / module / "go.mod").write_text("require k8s.io/kubernetes v1.2.3 // indirect\n")
        (tmp_path / module / "go.sum").write_text("")
    monkeypatch.setattr(paths, "TOOL_MODULES", tmp_path)
    toolset.digest.cache_clear()
    yield tmp_path
    toolset.digest.cache_clear()


@pytest.mark.parametrize("file", ["containers/go.mod", "kubernetes/go.sum", "containers/main.go"])
def test_the_tools_folder_follows_what_they_are_built_from(tool_modules, file):
    before = tools.bin_folder()
    assert tools.bin_folder() == before
    (tool_modules / file).write_text("changed")
    toolset.digest.cache_clear()
    assert tools.bin_folder() != before


def test_the_pinned_version_is_read_from_the_module(tool_modules):
    assert toolset.kubernetes_version() == "v1.2.3"
    (tool_modules / "kubernetes" / "go.mod").write_text("")
    with pytest.raises(ClusterError, match="does not require"):
        toolset.kubernetes_version()


def test_the_modules_kubernetes_is_split_into_have_its_version():
    lines = (paths.TOOL_MODULES / "kubernetes" / "go.mod").read_text().splitlines()
    replaced = [line.split() for line in lines if "=>" in line]
    version = toolset.kubernetes_version().replace("v1.", "v0.")
    assert len(replaced) > 30
    assert all(old == new and pin == version for old, _, new, pin in replaced)


def test_a_build_without_go_says_so(tool_modules, monkeypatch, tmp_path):
    monkeypatch.setenv("LLM_OPERATOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="Go is not installed"):
        tools.build()


def test_the_cache_follows_the_environment(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("LLM_OPERATOR_CACHE", raising=False)
    assert paths.cache() == Path("/x/llm-operator")
    monkeypatch.setenv("LLM_OPERATOR_CACHE", "/y")
    assert paths.cache() == Path("/y")


def test_without_root_nothing_is_tried(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(packages, "install", lambda: pytest.fail("tried to install"))
    with pytest.raises(ClusterError, match="as root only: use sudo"):
        lifecycle.build()


def test_all_that_is_missing_is_said_at_once():
    checks = (lambda: "no this", lambda: None, lambda: "no that")
    with pytest.raises(ClusterError, match=r"cluster:\n  - no this\n  - no that$"):
        preflight.check(checks)


def test_a_port_in_use_is_named(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setattr(preflight, "PORTS", (port,))
        assert preflight.ports() == f"port {port} of 127.0.0.1 is in use by another program"
    assert preflight.ports() is None


@pytest.mark.parametrize(
    ("policy", "rules", "refused"),
    [
        ("accept", "", False),
        ("drop", "", True),
        ("drop", f"ip saddr {network.POD_RANGE} accept", False),
    ],
)
def test_a_firewall_that_drops_forwarded_packets_is_named(monkeypatch, policy, rules, refused):
    docker = {"family": "ip", "table": "filter", "name": "FORWARD"}
    chains = {"nftables": [{"metainfo": {}}, {"chain": {**docker, "hook": "forward"}}]}
    chains["nftables"][1]["chain"]["policy"] = policy

    def nft(argv):
        return json.dumps(chains) if "chains" in argv else rules

    monkeypatch.setattr(preflight, "run", nft)
    problem = preflight.firewall()
    assert (problem is not None) == refused
    if problem:
        assert problem.startswith("the chain FORWARD of the nftables table ip filter drops")


def test_a_long_checkout_path_is_refused(monkeypatch):
    assert preflight.path_length() is None
    monkeypatch.setattr(paths, "CHECKOUT", Path("/" + "x" * 100))
    assert "is longer than" in preflight.path_length()


def test_a_command_that_fails_says_what_it_said():
    with pytest.raises(ClusterError, match=r"`sh -c .*` failed with code 3: broken"):
        run(["sh", "-c", "echo broken >&2; exit 3"])
    with pytest.raises(ClusterError, match="no-such-program is not installed"):
        run(["no-such-program"])
    with pytest.raises(ClusterError, match=r"did not end within 0 s"):
        run(["sleep", "5"], timeout=0.1)


@pytest.mark.parametrize(
    "arguments",
    [["gpu", "--count", "-1"], ["gpu"], ["fake-nodes", "x"], ["fake-nodes", "1", "--gpus", "1.5"]],
)
def test_bad_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit):
        __main__.main(arguments)
    assert "error: " in capsys.readouterr().err
