"""The command `index`: what is embedded, kept, dropped and refused."""

import os
import shutil
import signal

import pytest
import timm
import torch
import torch.nn.functional as F

from hf_protosphere.cli import main
from hf_protosphere.data.pixels import image_files, open_image, pixels_of
from hf_protosphere.errors import ArgumentError, DataError
from hf_protosphere.retrieval.arguments import IndexArguments, SearchArguments
from hf_protosphere.retrieval.embedding import Embedder
from hf_protosphere.retrieval.image_index import INDEX, ImageIndex
from hf_protosphere.retrieval.index import index
from hf_protosphere.retrieval.search import search
from tests.data import replace_file
from tests.open_set.test_threshold import noise, save_checkpoint


def arguments(photos, model, folder, **more):
    return IndexArguments(images=str(photos), model=model, index_dir=str(folder), **more)


def test_only_what_is_new_is_embedded(photos, model, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "index"
    made = index(arguments(photos, model, folder))
    assert "4 embedded, 0 as they were, 0 dropped" in capsys.readouterr().out
    (photos / "3.PNG").unlink()
    noise(9).save(photos / "new.png")
    noise(8).save(photos / "a/0.png")  # another image of the same size
    os.utime(photos / "a/0.png", ns=(1, 1))
    embedded = []
    embed_all = Embedder.embed_all

    def counted(self, images, **options):
        embedded.extend(images)
        return embed_all(self, images, **options)

    monkeypatch.setattr(Embedder, "embed_all", counted)
    again = index(arguments(photos, model, folder))
    assert sorted(path.name for path in embedded) == ["0.png", "new.png"]
    assert "4 images of 96 dimensions; 2 embedded, 2 as they were, 2 dropped" in (capsys.readouterr().out)
    fresh = ImageIndex.of_folder(photos, model)
    assert again.images == fresh.images
    assert torch.allclose(again.embeddings, fresh.embeddings, atol=1e-5)
    assert not torch.allclose(again.embeddings[0], made.embeddings[1], atol=1e-3)


def test_another_model_is_refused(photos, tmp_path, built):
    folder, made = built
    other = tmp_path / "other"
    checkpoint = save_checkpoint(other, with_snapshot=False)
    checkpoint.head.weight.data.neg_()
    checkpoint.save_pretrained(other)  # another head: the embeddings are the same
    made.check_model(Embedder.load(str(other)))
    next(checkpoint.protosphere.parameters()).data.mul_(1.01)
    checkpoint.save_pretrained(other)
    query = SearchArguments(index=str(folder), queries=[str(photos / "3.PNG")], model=str(other))
    for job, given in ((search, query), (index, arguments(photos, str(other), folder))):
        with pytest.raises(ArgumentError, match=r"not what the index was built with"):
            job(given)
    index(arguments(photos, str(other), folder, overwrite=True))
    search(query)


def test_own_weights_for_a_backbone(photos, model, tmp_path):
    weights = []
    for seed in range(2):
        torch.manual_seed(seed)
        torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / f"{seed}.pth")
        weights.append({"pretrained": str(tmp_path / f"{seed}.pth")})
    first = index(arguments(photos, "test_resnet", tmp_path / "index", **weights[0]))
    found = search(SearchArguments(index=str(tmp_path / "index"), queries=[str(photos / "3.PNG")], k=1, json=True))
    assert found[str(photos / "3.PNG")][0]["cosine"] == pytest.approx(1, abs=1e-5)  # by the weights of the index
    with pytest.raises(ArgumentError, match="not what the index was built with"):
        index(arguments(photos, "test_resnet", tmp_path / "index", **weights[1]))
    other = index(arguments(photos, "test_resnet", tmp_path / "other", **weights[1]))
    assert not torch.allclose(other.embeddings, first.embeddings, atol=1e-3)
    with pytest.raises(ArgumentError, match=r"--model test_resnet cannot be loaded: \S+gone\.pth is neither"):
        index(arguments(photos, "test_resnet", tmp_path / "new", pretrained=str(tmp_path / "gone.pth")))
    with pytest.raises(ArgumentError, match=r"--pretrained \S+ is for a backbone, and --model has weights"):
        index(arguments(photos, model, tmp_path / "new", **weights[0]))


@pytest.mark.parametrize(("projection", "dim"), [("none", 96), ("linear", 96), ("mlp", 24)], ids=str)
def test_the_layer_before_the_projections_last(photos, tmp_path, projection, dim):
    """Search asks the index, not the user, which layer its vectors are of."""
    more = {"projection_hidden_dim": 24, "projection_batch_norm": True} if dim == 24 else {}
    model = save_checkpoint(tmp_path / "model", with_snapshot=False, projection=projection, **more).protosphere
    made = index(arguments(photos, str(tmp_path / "model"), tmp_path / "index", layer="features"))
    embedder = Embedder.load(str(tmp_path / "model"))
    pixels = pixels_of([open_image(path) for path in image_files(photos)], embedder.processor)
    with torch.no_grad():
        features = model(pixels).pooler_output
        for layer in [] if projection == "none" else [*model.projection][:-1]:
            features = layer(features)
    assert made.embeddings.shape == (4, dim)
    assert torch.allclose(made.embeddings, F.normalize(features, dim=1), atol=1e-5)
    found = search(SearchArguments(index=str(tmp_path / "index"), queries=[str(photos / "3.PNG")]))
    assert found[str(photos / "3.PNG")][0]["cosine"] == pytest.approx(1, abs=1e-5)
    if projection != "none":
        with pytest.raises(ArgumentError, match=r"layer embeddings, is not .* features"):
            index(arguments(photos, str(tmp_path / "model"), tmp_path / "index"))


def test_an_index_of_other_images_is_not_replaced(photos, model, built, tmp_path):
    shutil.copytree(photos, tmp_path / "others")
    with pytest.raises(ArgumentError, match=r"index of other images, .*photos"):
        index(arguments(tmp_path / "others", model, built[0]))


def test_images_that_cannot_be_decoded(photos, model, tmp_path, caplog):
    (photos / "cut.png").write_bytes((photos / "3.PNG").read_bytes()[:200])
    with pytest.raises(DataError, match=r"1 of the images cannot be decoded: .*cut\.png"):
        index(arguments(photos, model, tmp_path / "i"))
    made = index(arguments(photos, model, tmp_path / "i", on_bad_image="skip"))
    assert len(made) == 4
    assert "Left out 1 images" in caplog.text


def test_a_file_replaced_under_its_name_size_and_time_is_embedded_again(photos, model, tmp_path):
    path = photos / "a.bmp"
    noise(5).save(path)
    before = index(arguments(photos, model, tmp_path / "i"))
    noise(6).save(tmp_path / "other.bmp")
    replace_file(path, (tmp_path / "other.bmp").read_bytes())
    after = index(arguments(photos, model, tmp_path / "i"))
    row = [image.path for image in after.images].index("a.bmp")
    assert not torch.equal(after.embeddings[row], before.embeddings[row])
    assert after.embeddings[row] @ Embedder.load(model)([noise(6)])[0] == pytest.approx(1, abs=1e-5)


def test_a_folder_without_images_is_said(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArgumentError, match=r"--images .*empty holds no image"):
        index(arguments(tmp_path / "empty", model, tmp_path / "i"))


def test_a_process_killed_while_it_writes_leaves_the_old_index(photos, model, built, python):
    folder, made = built
    noise(9).save(photos / "new.png")
    code = (
        "import os, signal, sys, types, zlib\n"
        "from hf_protosphere.cli import main\n"
        "from hf_protosphere.retrieval import image_index\n"
        "def killed(content):\n"
        "    if content.flags.writeable:  # what is read\n"
        "        return zlib.crc32(content)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "image_index.zlib = types.SimpleNamespace(crc32=killed)\n"
        "main(sys.argv[1:])\n"
    )
    argv = ["index", str(photos), "--model", model, "--index_dir", str(folder)]
    ended = python("-c", code, *argv)
    assert ended.returncode == -signal.SIGKILL
    assert ImageIndex.load(folder).images == made.images
    main(argv)
    assert len(ImageIndex.load(folder)) == 5
    assert [path.name for path in folder.iterdir() if path.is_file()] == [INDEX]
