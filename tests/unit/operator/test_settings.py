import pytest

from llm_operator.settings import Settings, SettingsError


def test_nothing_set_means_defaults_and_other_programs_variables_are_not_ours():
    assert Settings.from_env({"PATH": "/bin", "LLM_MODEL_ID": "x"}) == Settings()


def test_every_setting_is_read():
    settings = Settings.from_env(
        {
            "LLM_OPERATOR_RUNTIME_IMAGE_REPOSITORY": "registry.example/llm",
            "LLM_OPERATOR_RUNTIME_IMAGE_TAG": "v1",
            "LLM_OPERATOR_RUNTIME_IMAGE_CPU": "",
            "LLM_OPERATOR_RUNTIME_IMAGE_PULL_POLICY": "",
            "LLM_OPERATOR_RUNTIME_IMAGE_PULL_SECRETS": "one, two",
            "LLM_OPERATOR_WATCH_NAMESPACES": "a,b",
            "LLM_OPERATOR_WATCH_NODES": "false",
            "LLM_OPERATOR_RESYNC_SECONDS": "60",
            "LLM_OPERATOR_LOG_LEVEL": "debug",
            "LLM_OPERATOR_LOG_FORMAT": "json",
            "LLM_OPERATOR_HEALTH_PORT": "9000",
            "LLM_OPERATOR_ROLL_ON_CONFIG_CHANGE": "false",
            "LLM_OPERATOR_HARDWARE_PROFILES": "",
            "LLM_OPERATOR_STANDALONE": "true",
            "LLM_OPERATOR_LEASE_NAME": "other",
            "LLM_OPERATOR_NAMESPACE": "system",
            "LLM_OPERATOR_POD_NAME": "llm-operator-0",
        }
    )
    image = settings.runtime_image
    assert (image.repository, image.tag, image.cpu, image.pull_policy) == (
        "registry.example/llm",
        "v1",
        None,
        None,
    )
    assert [secret.name for secret in image.pull_secrets] == ["one", "two"]
    assert settings.watch_namespaces == ("a", "b")
    assert settings.watch_nodes is False
    assert settings.resync_seconds == 60
    assert (settings.log_level, settings.log_format) == ("debug", "json")
    assert settings.health_port == 9000
    assert settings.roll_on_config_change is False
    assert settings.hardware_profiles == {}
    assert settings.standalone is True
    assert (settings.lease_name, settings.lease_namespace()) == ("other", "system")
    assert settings.pod_name == "llm-operator-0"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("LLM_OPERATOR_LOG_FORMAT", "xml", "'text' or 'json'"),
        ("LLM_OPERATOR_HEALTH_PORT", "0", "greater than or equal to 1"),
        ("LLM_OPERATOR_RUNTIME_IMAGE_PULL_POLICY", "Sometimes", "'Always', 'IfNotPresent'"),
        ("LLM_OPERATOR_WATCH_NAMESPACE", "a", "not a setting"),
        ("LLM_OPERATOR_RUNTIME_IMAGE_NAME", "a", "not a setting"),
        ("LLM_OPERATOR_STANDALONE", "perhaps", "boolean"),
        ("LLM_OPERATOR_LEASE_NAME", "Llm", "pattern"),
        ("LLM_OPERATOR_NAMESPACE", "a b", "pattern"),
        ("LLM_OPERATOR_HARDWARE_PROFILES", "{", "is not JSON"),
        ("LLM_OPERATOR_HARDWARE_PROFILES", "[]", "valid dictionary"),
        ("LLM_OPERATOR_HARDWARE_PROFILES", '{"A": {}}', "profile A: a profile's name has lower"),
        ("LLM_OPERATOR_WATCH_NODES", "sometimes", "boolean"),
        ("LLM_OPERATOR_ROLL_ON_CONFIG_CHANGE", "2", "boolean"),
        ("LLM_OPERATOR_RESYNC_SECONDS", "0.5", "greater than or equal to 1"),
        ("LLM_OPERATOR_LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
    ],
)
def test_a_wrong_setting_is_named(name, value, said):
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({name: value})
    assert str(caught.value).startswith(name)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_profiles_are_read_as_the_chart_writes_them():
    profiles = '{"a100": {"gpu": {"count": 2}}, "small": {"resources": {"limits": {"cpu": 0.5}}}}'
    settings = Settings.from_env({"LLM_OPERATOR_HARDWARE_PROFILES": profiles})
    assert settings.hardware_profiles["a100"].gpu.count == 2
    assert settings.hardware_profiles["small"].resources.limits == {"cpu": "0.5"}


def test_a_wrong_profile_is_named_and_the_others_are_not_repeated():
    profiles = '{"a100": {"gpu": {"count": 2}}, "small": {"gpus": 1}}'
    with pytest.raises(SettingsError) as caught:
        Settings.from_env({"LLM_OPERATOR_HARDWARE_PROFILES": profiles})
    assert str(caught.value) == (
        "LLM_OPERATOR_HARDWARE_PROFILES: hardware profile small: gpus is not a field of a profile"
    )


def test_an_election_needs_a_namespace():
    with pytest.raises(SettingsError, match=r"LLM_OPERATOR_NAMESPACE is not set.*STANDALONE=true"):
        Settings().lease_namespace()
