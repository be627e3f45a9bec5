"""Drawings of different pictures never overwrite each other."""

from pathlib import Path

from edgecv.workflows.predict import saved_names


def test_every_source_gets_a_name_of_its_own():
    sources = [Path(p) for p in ("a/x.png", "b/x.png", "x.bmp", "x-1.png", "y.JPG", "x.gif")]
    names = saved_names(sources)
    assert names == ["x.png", "x-1.png", "x-2.png", "x-1-1.png", "y.JPG", "x-3.png"]
