"""A process's clients of a Hub: huggingface_hub, datasets and transformers."""

import datasets
import pytest
import transformers.dynamic_module_utils
import transformers.utils.hub
from huggingface_hub import constants, hf_api


def use(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Point this process at the server of these `HubServer.variables`.

    The libraries read the environment when they are imported, which has long happened; so what
    they read is replaced where they keep it. Processes that a test starts find the environment.
    """
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    url, home = variables["HF_ENDPOINT"], variables["HF_HOME"]
    replaced = {
        constants: {
            "ENDPOINT": url,
            "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": f"{home}/hub",
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        },
        transformers.utils.hub: {"_hf_api": None},  # made at its first use, for one address
        hf_api.api: {"endpoint": url},  # behind huggingface_hub.create_repo and the like
        datasets.config: {
            "HF_ENDPOINT": url,
            "HUB_DATASETS_URL": url + "/datasets/{repo_id}/resolve/{revision}/{path}",
            "HF_HUB_OFFLINE": False,
        },
        transformers.dynamic_module_utils: {"HF_MODULES_CACHE": f"{home}/modules"},
    }
    for target, attributes in replaced.items():
        for name, value in attributes.items():
            monkeypatch.setattr(target, name, value)
