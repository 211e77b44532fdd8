"""The metadata at the head of a README.md: read, checked as the Hub does, and summed up as tags."""

import json
import re
from collections.abc import Iterator

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK

LISTS = ("tags", "datasets", "language", "metrics")  # a string, or a list of strings


def metadata(content: str) -> dict:
    """The metadata as JSON values; empty where there is none that can be read."""
    try:
        found = _load(content)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def check(content: str) -> tuple[list[str], list[str]]:
    """Errors, which the Hub refuses, and warnings."""
    try:
        found = _load(content)
    except yaml.YAMLError as error:
        return [f"Invalid YAML: {error}"], []
    if not found:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(found, dict):
        return ["The metadata must be a mapping of names to values"], []
    return list(_errors(found)), []


def tags(found: dict, content: str) -> list[str]:
    """What a repository is found by."""
    names = [found.get("library_name"), found.get("pipeline_tag"), *_strings(found.get("tags"))]
    names += [f"dataset:{name}" for name in _strings(found.get("datasets"))]
    names += [f"license:{name}" for name in _strings(found.get("license"))]
    names += [f"arxiv:{number}" for number in re.findall(r"arxiv\.org/\w+/(\d{4}\.\d+)", content)]
    names += _strings(found.get("language"))
    return list(dict.fromkeys(name for name in names if name))


def _load(content: str) -> object:
    block = REGEX_YAML_BLOCK.search(content)
    found = yaml.safe_load(block.group(2)) if block else None
    return json.loads(json.dumps(found, default=str))  # dates become strings


def _strings(value: object) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if isinstance(item, str)]


def _errors(found: dict) -> Iterator[str]:
    for key in ("license", *LISTS):
        value = found.get(key)
        values = value if isinstance(value, list) else [value]
        if key in found and not all(isinstance(item, str) for item in values):
            yield f'"{key}" must be a string or a list of strings'
    for key in ("library_name", "pipeline_tag", "license_name", "license_link"):
        if key in found and not isinstance(found[key], str):
            yield f'"{key}" must be a string'
    yield from _model_index_errors(found.get("model-index", []))


def _model_index_errors(index: object) -> Iterator[str]:
    if not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for place, model in _items({"model-index": index}, "model-index"):
        yield from _missing(model, place, "name", "results")
        for there, result in _items(model, "results", place):
            yield from _missing(result, there, "task.type", "dataset.type", "dataset.name")
            yield from _missing(result, there, "metrics")
            for metric_place, metric in _items(result, "metrics", there):
                yield from _missing(metric, metric_place, "type", "value")


def _items(entry: object, key: str, place: str = "") -> Iterator[tuple[str, object]]:
    items = entry.get(key) if isinstance(entry, dict) else None
    where = f"{place}.{key}" if place else key
    for i, item in enumerate(items if isinstance(items, list) else []):
        yield f"{where}[{i}]", item


def _missing(entry: object, place: str, *keys: str) -> Iterator[str]:
    for key in keys:
        value = entry
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if value is None:
            yield f'"{place}.{key}" is required'
