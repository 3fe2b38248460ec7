"""A method of an installed package as a submission, without a file of one's own."""

import re

import pytest

from attacks.errors import UserError
from benchmark.submissions.child import Child
from benchmark.submissions.installed import parse


def test_captums_grad_cam_is_a_submission(temporary, model, batch, tmp_path):
    submission = parse("captum.attr:LayerGradCam", "layer4", tmp_path)
    assert str(submission) == "captum_attr.py:LayerGradCam"
    assert parse("captum.attr:LayerGradCam", "layer4", tmp_path) == submission
    assert parse("captum.attr:LayerGradCam", None, tmp_path).digest != submission.digest
    with Child(submission) as child:
        assert child.describe() == {
            "name": "layer_grad_cam_of_captum",
            "kind": "function",
            "differentiable": False,
            "stochastic": False,
        }
        maps = child.heatmaps(model, *batch)
    from captum.attr import LayerGradCam

    attribution = LayerGradCam(model, model.layer4).attribute(batch[0], target=batch[1]).sum(1).relu()
    highest = attribution.amax((1, 2), keepdim=True)
    low = attribution.amin((1, 2), keepdim=True)
    assert (maps - (attribution - low) / (highest - low).clamp_min(1e-30)).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("text", "layer", "message"),
    [
        ("absent_one.attr:Thing", None, "submission 'absent_one.attr:Thing': no package 'absent_one' is installed"),
        (
            "captum.attr:LayerGradcam",
            None,
            "submission 'captum.attr:LayerGradcam': unknown name in captum.attr "
            "'LayerGradcam': did you mean 'LayerGradCam'? allowed: ",
        ),
        ("captum.atr:LayerGradCam", None, "submission 'captum.atr:LayerGradCam': no module 'captum.atr' is installed"),
        ("json.absent.one:Thing", None, "submission 'json.absent.one:Thing': no module 'json.absent.one' is installed"),
        ("mine.py:Thing", "layer4", "--layer is for a package's method; a file says adapted(method, layer=...)"),
        ("mine.py", None, "a submission must be FILE.py:NAME, a class or function in a file (got 'mine.py')"),
        ("mine.py:Thing", None, "submission 'mine.py:Thing': mine.py cannot be read: No such file or directory"),
    ],
)
def test_what_is_none_is_told_in_one_line(tmp_path, monkeypatch, text, layer, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"^{re.escape(message)}[^\n]*$"):
        parse(text, layer, tmp_path)
    assert list(tmp_path.iterdir()) == []
