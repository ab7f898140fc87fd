"""A network that withstands some of an attack and not all of it, for attacks that are to be equally strong."""

import pytest
from small import late


@pytest.fixture(params=["blobs", late("shapes")])
def attacked(request, sound, blobs):
    """An adversarially trained network, and pictures that it was not trained on."""
    if request.param == "blobs":
        return sound["pgd"], blobs.test.first(100)
    lab = request.getfixturevalue("lab")
    return lab.robust, lab.split.first(100)
